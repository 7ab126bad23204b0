"""A recipe with ``heal``: its steps are run into a folder beside the output, which is then healed into the output."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.checkpoint.output import check_output
from compress.errors import UserError
from compress.healing.data import check_healing_text
from compress.healing.job import STATE
from compress.healing.rules import check_rules
from compress.healing.stage import heal
from compress.healing.state import what_is_kept
from compress.models.skeleton import open_skeleton
from compress.pipeline.carry_out import run
from compress.pipeline.prepare import run_settings
from compress.pipeline.request import Output, Request
from compress.pipeline.run import Result
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe
from compress.system.device import resolve_dtype
from compress.system.progress import Progress

RUN = "compress-run.json"
"""In the folder of an output that is still to be healed: the settings of the run, by which the same run knows it."""


def run_and_heal(request: Request, listener: Progress) -> Result:
    """Run the steps of a recipe, then its ``heal``; where that was stopped, go on with it.

    The output of the steps stands in ``OUT.unhealed`` until the healed one is verified.

    Raises:
        UserError: anything that the user can mend.
    """
    output, section = request.output, request.recipe.heal
    assert output is not None and section is not None
    folder = output.folder.absolute()
    check_output(folder.resolve(), request.source.path, output.overwrite)
    steps = request.recipe.model_copy(update={"heal": None})
    unhealed = folder.with_name(folder.name + ".unhealed")
    skeleton = open_skeleton(request.source)
    calibrate = request.recipe.calibrate
    check_healing_text(skeleton, section, section.data or calibrate.data, calibrate.bos)
    make_plan(skeleton, request.recipe, format=request.format)  # refuses what cannot be healed
    check_rules(section)
    settings = _settings(request, steps)
    if not _finished(unhealed, settings, restart=output.restart):
        inner = Output(unhealed, overwrite=False, restart=output.restart)
        run(replace(request, recipe=steps, output=inner), listener, {RUN: _text(settings)})
    with _telling(folder, unhealed):
        healed = heal(
            unhealed,
            source=request.source,
            data=section.data or steps.calibrate.data,
            settings=section.model_dump(mode="json", exclude={"data"}, exclude_defaults=True),
            new=folder,
            seed=request.seed,
            device=str(request.device),
            dtype=request.dtype,
            overwrite=output.overwrite,
            restart=output.restart,
            trust_remote_code=request.source.trust_remote_code,
            progress=listener,
        )
    shutil.rmtree(unhealed)
    return Result(healed.out, healed.plan, healed.report)


@contextmanager
def _telling(folder: Path, unhealed: Path) -> Iterator[None]:
    """Have whatever stops the healing tell what is kept of the run.

    Raises:
        UserError: that of the healing, with the folder of the compressed checkpoint.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(
            f"{str(error).rstrip('.')}. The compressed checkpoint is kept in {unhealed}."
        ) from error
    except KeyboardInterrupt as stopped:
        kept = what_is_kept(folder.with_name(folder.name + ".partial") / STATE)
        stopped.add_note(
            f"Stopped; {kept} kept, and the compressed checkpoint in {unhealed}: the same command goes on from there."
        )
        raise


def _settings(request: Request, recipe: Recipe) -> dict[str, Any]:
    dtype = resolve_dtype(request.dtype, open_skeleton(request.source).dtype, request.device.type)
    text = Path(recipe.calibrate.data)
    content = hashlib.sha256(text.read_bytes()).hexdigest() if text.is_file() else ""
    return {**run_settings(request, recipe, dtype), "calibration text": content}


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=1, sort_keys=True, default=str) + "\n"


def _finished(unhealed: Path, settings: Mapping[str, Any], *, restart: bool) -> bool:
    """Whether the steps were run before, with the same settings.

    Raises:
        UserError: the folder is in the way: of another run, or not made by compress.
    """
    if not unhealed.exists():
        return False
    known = (unhealed / RUN).is_file()
    if known and (unhealed / RUN).read_text(encoding="utf-8") == _text(settings):
        return True
    if known and restart:
        shutil.rmtree(unhealed)
        return False
    raise UserError(
        f"{unhealed} holds the unhealed output of another run: go on with the command that began it, remove that folder, or "
        "discard it with --restart"
    )
