"""Runs our own ``compress run``, the command line and all, on one job."""

from __future__ import annotations

import compress_cli.main
from probe import import_model, read_job


def main() -> None:
    """One mark when everything is imported, one when the command has verified what it wrote."""
    job = read_job()
    import_model(job.model)
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
