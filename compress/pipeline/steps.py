"""The public functions `plan` and `compress`: the steps of :mod:`compress.pipeline.prepare`, then those of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compress.assets import EMBEDDED, embedded_model
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.dense_source import open_dense
from compress.pipeline.carry_out import run
from compress.pipeline.healed import run_and_heal
from compress.pipeline.prepare import prepared
from compress.pipeline.request import Output, Request
from compress.pipeline.run import Result
from compress.planning.duration import work_of
from compress.planning.economy import MemoryBound
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe
from compress.system.device import resolve_device
from compress.system.monitor import anonymous_bytes, keep_little_free_memory
from compress.system.progress import Progress, Silent
from compress.text.check import check_text


def plan(
    model: str | Path,
    recipe: str | Path | Recipe,
    *,
    samples: int | None = None,
    length: int | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    format: str | None = None,
    trust_remote_code: bool = False,
    data: str | None = None,
    bos: bool | None = None,
    seed: int = 0,
    strict: bool = False,
    memory: int | None = None,
    device_memory: int | None = None,
) -> Plan:
    """Dry run: what :func:`compress` would do, from headers and configuration alone; the arguments are the same.

    Where a recipe prunes the model's shape or chooses ranks or sparsities by layer, the sizes depend on data: the model is
    then run here, on the CPU, which takes as long as in a run.

    Raises:
        UserError: whatever would stop the run before its first weight.
    """
    where = torch.device("cpu") if device_memory is None else resolve_device("auto")
    request = Request(
        recipe=_recipe(recipe, settings, data=data, samples=samples, length=length, bos=bos),
        source=open_model(model, trust_remote_code),
        device=where,
        dtype=dtype,
        seed=seed,
        format=format,
        folder=Path(tempfile.gettempdir()),
        plan_only=True,
        strict=strict,
        memory=_bound(memory, device_memory, where),
    )
    with prepared(request) as ready:
        return replace(ready.plan, work=work_of(ready.skeleton, ready.plan, ready.dtype))


def compress(
    model: str | Path,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    data: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    bos: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    format: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    gradients: str | Path | None = None,
    strict: bool = False,
    memory: int | None = None,
    device_memory: int | None = None,
) -> Result:
    """Compress a Hugging Face checkpoint and verify what was written.

    Args:
        model: a folder, a hub name, or ``"embedded"`` for the model that ships with the package.
        recipe: a shipped recipe's name, a YAML file, or a :class:`~compress.recipe.Recipe`.
        out: the folder to make. An unfinished run with the same arguments is continued.
        data: calibration text in place of the recipe's: a file, a hub dataset or ``"embedded"``.
        samples, length: how many calibration windows, of how many tokens; the recipe's own if ``None``.
        bos: whether every window begins with the BOS token; as the tokenizer does by itself if ``None``.
        seed: decides which windows are drawn, and all else that is drawn.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …: where blocks run and weights are solved.
        dtype: ``"auto"`` (the model's own), ``"bf16"``, ``"fp16"`` or ``"fp32"``: what blocks are computed in.
        format: ``"auto"``, ``"compressed-tensors"``, ``"native"`` or ``"dense"``; the recipe's own if ``None``.
        overwrite: replace ``out`` if it exists, once the new one is verified.
        restart: discard an unfinished run into ``out`` that was begun with other arguments; otherwise it is refused.
        trust_remote_code: run Python code that comes with the checkpoint.
        settings: changes to the recipe by dotted key, such as ``{"quantize.group_size": 64}``.
        progress: is called as the run advances.
        gradients: a folder that keeps gradient moments, for other runs over the same model, data and seed.
        strict: refuse a model of which a block's matrix parameters would be compressed to less than 95%.
        memory: bytes that the process may hold on the host; ``None`` for no bound.
        device_memory: bytes that it may hold on the accelerator; ``None`` for no bound.

    Raises:
        UserError: anything that the user can mend, in one sentence; nothing that existed is touched.
    """
    keep_little_free_memory()
    where = resolve_device(device)
    request = Request(
        recipe=_recipe(recipe, settings, data=data, samples=samples, length=length, bos=bos),
        source=open_model(model, trust_remote_code),
        device=where,
        dtype=dtype,
        seed=seed,
        format=format,
        folder=Path(out).absolute().parent,
        output=Output(Path(out), overwrite=overwrite, restart=restart),
        gradients=None if gradients is None else _folder_of_gradients(Path(gradients)),
        strict=strict,
        memory=_bound(memory, device_memory, where),
    )
    listener = progress or Silent()
    return run_and_heal(request, listener) if request.recipe.heal is not None else run(request, listener)


def open_model(model: str | Path, trust_remote_code: bool) -> Source:
    """The checkpoint of a folder, a hub name or ``"embedded"``, as dense weights."""
    path = embedded_model() if str(model) == EMBEDDED else model
    return open_dense(path, trust_remote_code=trust_remote_code)


def _folder_of_gradients(path: Path) -> Path:
    """The folder that keeps them, made here: a pass over the whole model must not end at one that cannot be.

    Raises:
        UserError: it cannot be made, or is no folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--cache {path} cannot be a folder: {error.strerror}") from error
    return path


def _bound(memory: int | None, on_device: int | None, device: torch.device) -> MemoryBound | None:
    """The bound of a process that has imported what a run needs, and holds nothing yet.

    Raises:
        UserError: a bound of an accelerator for a run on the CPU.
    """
    if on_device is not None and device.type == "cpu":
        raise UserError(
            "--device-memory bounds an accelerator's memory, and this run is on the CPU: give --memory, which bounds the host's"
        )
    if memory is None and on_device is None:
        return None
    return MemoryBound(memory, anonymous_bytes() or 0, on_device)


def _recipe(recipe: str | Path | Recipe, settings: Mapping[str, Any] | None, **calibrate: Any) -> Recipe:
    """The recipe with what was given, its texts looked at before a model is opened."""
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(f"settings maps keys of the recipe to values, not {type(settings).__name__}")
    given = {f"calibrate.{key}": value for key, value in calibrate.items() if value is not None}
    changes = {**(settings or {}), **given}
    found = recipe.with_settings(changes) if isinstance(recipe, Recipe) else Recipe.load(recipe, changes)
    for text in (found.calibrate.data, found.heal.data if found.heal is not None else None):
        if text is not None:
            check_text(text)
    return found
