"""One run from a request to a finished folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from compress.checkpoint.writer import Writer
from compress.pipeline.job import Job, timed_step
from compress.pipeline.prepare import prepared
from compress.pipeline.request import Request
from compress.pipeline.run import Result, Run
from compress.planning.fingerprint import fingerprint
from compress.system.monitor import Monitor
from compress.system.progress import Progress
from compress.system.ranks import current_ranks


def run(
    request: Request,
    listener: Progress,
    files: Mapping[str, str] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Result:
    """Compress and verify what was written.

    Args:
        request: with an output.
        listener: is told what happens.
        files: text files by name that are written beside the report.
        figures: plain data of a search before the run, for the report.

    Raises:
        UserError: anything that the user can mend.
    """
    assert request.output is not None
    left_out = request.source.left_out()
    if left_out:
        listener.note(left_out)
    with Monitor() as monitor, prepared(request, partial(timed_step, listener, monitor), monitor) as ready:
        job = Job(
            ready.skeleton,
            ready.plan,
            request.device,
            ready.dtype,
            request.seed,
            monitor,
            listener,
            replace(ready.sensitivity, figures={**ready.sensitivity.figures, **(figures or {})}),
            current_ranks(),
        )
        steps = Run(job, ready.corpus, [left_out] if left_out else [], files or {})
        source, identity = ready.skeleton.source, steps.identity()
        with Writer(
            request.output.folder,
            ready.plan.shards,
            source=source,
            fingerprint=fingerprint(ready.plan, source, **identity),
            settings={
                **ready.settings,
                "calibration tokens": identity["tokens"],
                "CPU kernels": identity["kernels"],
            },
            overwrite=request.output.overwrite,
            restart=request.output.restart,
            clock=lambda: monitor.wall,
        ) as writer:
            return steps.carry_out(writer)
