"""Runs our own ``compress run``, the command line and all, on one job."""

from __future__ import annotations

from importlib import import_module

import compress_cli.main
from probe import import_model, read_job

DEFERRED = ("compress_cli.run", "compress.api", "compress.verification.fresh_process")
"""What the command imports when it is carried out; the other tools import theirs before their first mark, too."""


def main() -> None:
    """One mark when everything is imported, one when the command has verified what it wrote."""
    job = read_job()
    import_model(job.model)
    for name in DEFERRED:
        import_module(name)
    job.mark("imported")
    arguments = [
        "run",
        job.model,
        "-r",
        job.options["recipe"],
        "-o",
        job.out,
        "--data",
        job.text,
        "--samples",
        str(job.samples),
        "--length",
        str(job.length),
        "--seed",
        str(job.seed),
        "--device",
        "cpu",
        "--quiet",
    ]
    for key, value in job.options.get("set", {}).items():
        arguments += ["--set", f"{key}={value}"]
    if form := job.options.get("format"):
        arguments += ["--format", form]
    compress_cli.main.app(arguments, standalone_mode=False)
    job.mark("saved")


if __name__ == "__main__":
    main()
