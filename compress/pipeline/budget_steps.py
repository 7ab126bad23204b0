"""The public functions `plan_budget`, `compress_to_budget` and `sweep`: a search for a budget, then a run of its recipe."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from compress_kernels import native

from compress.allocate.amounts import Amount, parse_amount
from compress.allocate.cost import relative_cost
from compress.allocate.kernel_times import parse_time
from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.source import Source
from compress.checkpoint.unfinished import check_unfinished
from compress.errors import UserError
from compress.pipeline.budget import (
    SearchSettings,
    check_search_text,
    search_size,
)
from compress.pipeline.budget_search import BudgetSearch
from compress.pipeline.budget_space import Space, check_time, fewer_experts, is_copy, open_space, smallest_of
from compress.pipeline.carry_out import run
from compress.pipeline.passes import check_passes, pass_folder
from compress.pipeline.request import Output, Request
from compress.pipeline.run import Result
from compress.pipeline.steps import open_model
from compress.recipe.recipe import Recipe
from compress.recipe.runtimes import AUTO, TRIALS
from compress.report.assemble import versions
from compress.system.device import resolve_device, resolve_dtype
from compress.system.monitor import keep_little_free_memory
from compress.system.progress import Progress, Silent
from compress.system.units import in_bytes

RECIPE = "recipe.yaml"
"""The file beside the weights that makes the model again."""


@dataclass(frozen=True)
class Copied:
    """The result for a budget that the model fits as it is."""

    out: Path
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        return {"out": str(self.out), "note": self.note}


def compress_to_budget(
    model: str | Path,
    out: str | Path,
    *,
    budget: str | int | None = None,
    bits: float | None = None,
    ratio: float | None = None,
    fit: str | None = None,
    time: str | None = None,
    runtime: str = AUTO,
    trials: int = TRIALS,
    save_recipe: str | Path | None = None,
    data: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Result | Copied:
    """Compress a checkpoint to the best model within a budget of bytes, and verify what was written.

    The budget is that of the weight files, everything in them counted: embeddings, head, norms, scales and headers. Beside them
    the folder holds the recipe (``recipe.yaml``) that makes the same model again without a search.

    Args:
        model: a folder, a hub name, or ``"embedded"``.
        out: the folder to make. An unfinished run with the same arguments is continued.
        budget, bits, ratio, fit: the budget, one of them; see :func:`compress.allocate.amounts.parse_amount`.
        time: what the products of a decoding step may take on a measured device, such as ``"30ms-cpu"``, predicted
            (:mod:`compress.allocate.kernel_times`): a second budget; None for no limit.
        runtime: the program that runs the output: ``"transformers"``, ``"vllm"``, ``"llama.cpp"``, ``"mlx"``, ``"native"``; or
            ``"auto"``.
        trials: allocations whose true divergence is measured, to refine the predicted best.
        save_recipe: a file to write the recipe to as well.
        data, samples, length: calibration text; 128 windows of 2048 tokens of the embedded text by default.
        seed, device, dtype, overwrite, restart, trust_remote_code, progress: as for :func:`compress.compress`.

    Raises:
        UserError: anything that the user can mend, in one sentence, before any work.
    """
    amount, limit = _amount(budget, bits, ratio, fit), None if time is None else parse_time(time)
    out = Path(out)
    keep_little_free_memory()
    target = None if save_recipe is None else _writable(Path(save_recipe), overwrite)
    source = open_model(model, trust_remote_code)
    space, size = open_space(source, runtime, amount)
    if limit is not None:
        check_time(space, size, limit)
    listener = progress or Silent()
    check_unfinished(out, {}, source=source.path, overwrite=overwrite, restart=restart)
    if is_copy(space, size, limit):
        return _copy(source, out, size)
    calibrate = calibrate_of(data, samples, length)
    check_search_text(space.skeleton, calibrate)
    search = settings_of(space, calibrate, device, dtype, seed, trials)
    search = replace(search, time=limit)
    asked = asked_of(source, search, size)
    folder = search_folder(out)
    check_passes({"budget": folder}, asked, restart=restart)
    with pass_folder(folder, asked):
        with BudgetSearch(space, search, _bits(space, size), folder, listener) as searching:
            found = searching.find(size, amount.text)
        request = Request(
            source=source,
            recipe=found.recipe,
            device=search.device,
            dtype=dtype,
            seed=seed,
            format=None,
            folder=out.absolute().parent,
            output=Output(out, overwrite=overwrite, restart=restart),
        )
        result = run(request, listener, {RECIPE: recipe_text(found.recipe)}, found.figures)
    if target is not None:
        target.write_text(recipe_text(found.recipe), encoding="utf-8")
    return result


@dataclass(frozen=True)
class BudgetPlan:
    """What a search for a budget would do, from headers and configuration alone.

    Attributes:
        runtime: what the output is for.
        budget: bytes of the weight files.
        smallest: bytes of the smallest output.
        source_bytes: of the source's weight files.
        bits: that the budget leaves for each number of the model.
        units: how many weights, or groups of weights that have to be alike, are chosen for.
        candidates: how many candidates they have together.
        cost: multiply-adds of the search over those of the run after it, at most.
        copies: whether the model fits the budget as it is.
        experts: how many routed experts the models have that are searched through, too; empty where there are none.
    """

    runtime: str
    budget: int
    smallest: int
    source_bytes: int
    bits: float
    units: int
    candidates: int
    cost: float
    copies: bool
    experts: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        return asdict(self)


def plan_budget(
    model: str | Path,
    *,
    budget: str | int | None = None,
    bits: float | None = None,
    ratio: float | None = None,
    fit: str | None = None,
    time: str | None = None,
    runtime: str = AUTO,
    trials: int = TRIALS,
    data: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    trust_remote_code: bool = False,
) -> BudgetPlan:
    """Dry run: what :func:`compress_to_budget` would search through, and at what cost; the arguments are the same.

    Raises:
        UserError: whatever would stop the search before its first block.
    """
    amount, limit = _amount(budget, bits, ratio, fit), None if time is None else parse_time(time)
    source = open_model(model, trust_remote_code)
    space, size = open_space(source, runtime, amount)
    if limit is not None:
        check_time(space, size, limit)
    calibrate = calibrate_of(data, samples, length)
    if data is not None:
        check_search_text(space.skeleton, calibrate)
    tokens = search_size(space.skeleton, calibrate, trials)
    fewer = [] if limit else list(fewer_experts(space))
    searched = [space, *(one for _, _, one in fewer)]
    return BudgetPlan(
        runtime=space.runtime.name,
        budget=size,
        smallest=smallest_of(space),
        source_bytes=space.size.nbytes,
        bits=_bits(space, size),
        units=len(space.units),
        candidates=sum(len(unit.every) for unit in space.units),
        cost=sum(relative_cost(one.units, len(one.skeleton.blocks), tokens) for one in searched),
        copies=is_copy(space, size, limit),
        experts=tuple(routed.kept for _, routed, _ in fewer),
    )


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML, without what is the default."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def search_folder(out: Path) -> Path:
    """The folder beside an output that a search goes on from."""
    out = out.resolve()
    return out.with_name(f"{out.name}.partial.budget")


def _amount(budget: str | int | None, bits: float | None, ratio: float | None, fit: str | None) -> Amount:
    amount = parse_amount(budget=budget, bits=bits, ratio=ratio, fit=fit)
    if amount is None:
        raise UserError("Give a budget: --budget 4GB, --bits 3.5, --ratio 0.3 or --fit 8GB-ram.")
    return amount


def calibrate_of(data: str | None, samples: int | None, length: int | None) -> dict[str, Any]:
    """The calibration data of a recipe, as plain data; what is not given is left out."""
    given = {"data": data, "samples": samples, "length": length}
    return {key: value for key, value in given.items() if value is not None}


def settings_of(
    space: Space, calibrate: Mapping[str, Any], device: str, dtype: str, seed: int, trials: int
) -> SearchSettings:
    """The settings of a search in a space."""
    place = resolve_device(device)
    return SearchSettings(
        space.runtime.name,
        calibrate,
        place,
        resolve_dtype(dtype, space.skeleton.dtype, place.type),
        seed,
        trials,
    )


def asked_of(source: Source, search: SearchSettings, *budgets: int) -> dict[str, Any]:
    """What a search depends on, as plain data."""
    files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in source.files}
    return {
        "source": {"files": files, "tensors": content_fingerprint(source.files)},
        "budget": list(budgets),
        "runtime": search.runtime,
        "calibrate": dict(search.calibrate),
        "device": search.device.type,
        "dtype": str(search.dtype),
        "seed": search.seed,
        "trials": search.trials,
        **({} if search.time is None else {"time": search.time.text}),
        "versions": versions(),
        "CPU kernels": native.load().isa if search.device.type == "cpu" else "",
    }


def _bits(space: Space, budget: int) -> float:
    return 8 * budget / max(1, space.size.numel)


def _writable(path: Path, overwrite: bool) -> Path:
    """A file that may be written, checked before any work."""
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"--save-recipe {path} exists: choose another file or give --overwrite.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--save-recipe {path}: there is no folder {path.absolute().parent}.")
    return path


def _copy(source: Source, out: Path, budget: int) -> Copied:
    """The source's files in a folder of their own, which may be written: that was checked."""
    partial = out.with_name(f"{out.name}.partial.copy")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = {file.name for file in source.files} | {"config.json", "model.safetensors.index.json"}
    for file in [*(source.path / name for name in sorted(names)), *source.extra_files()]:
        if file.is_file():
            target = partial / file.relative_to(source.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    nbytes = sum(file.stat().st_size for file in source.files)
    return Copied(
        out,
        f"The budget of {in_bytes(budget)} holds the model as it is ({in_bytes(nbytes)}): it was copied unchanged.",
    )
