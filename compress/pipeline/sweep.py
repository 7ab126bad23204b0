"""The public function `sweep`: several budgets of one model, found by one pass over it, and their picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.allocate.amounts import Amount, bytes_of, parse_amount
from compress.errors import UserError
from compress.pipeline.budget import check_search_text
from compress.pipeline.budget_search import BudgetSearch
from compress.pipeline.budget_space import is_copy, open_space
from compress.pipeline.budget_steps import (
    RECIPE,
    asked_of,
    calibrate_of,
    recipe_text,
    search_folder,
    settings_of,
)
from compress.pipeline.carry_out import run
from compress.pipeline.passes import check_passes, pass_folder
from compress.pipeline.request import Output, Request
from compress.pipeline.steps import open_model
from compress.recipe.runtimes import AUTO, TRIALS
from compress.report.schema import Report
from compress.report.sweep_page import SweepPoint, render_sweep
from compress.system.files import write_text
from compress.system.monitor import keep_little_free_memory
from compress.system.progress import Progress, Silent
from compress.system.units import in_bytes

TABLE, PAGE = "sweep.json", "sweep.html"


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep: its folder, and one point for each budget, by rising bytes."""

    out: Path
    points: tuple[SweepPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        return {"out": str(self.out), "points": [asdict(point) for point in self.points]}


def sweep(
    model: str | Path,
    out: str | Path,
    *,
    budgets: Sequence[str | int] = (),
    bits: Sequence[float] = (),
    ratios: Sequence[float] = (),
    runtime: str = AUTO,
    trials: int = TRIALS,
    data: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    restart: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Compress a checkpoint to several budgets with one search pass.

    Every budget has a folder in ``out``, named after it, with what :func:`compress.compress_to_budget` writes. Beside them lie
    ``sweep.json`` and ``sweep.html``, the divergence over the bytes. Budgets whose folders are there are left as they are, so
    that the same call goes on where an interrupted one was.

    Args:
        model: a folder, a hub name, or ``"embedded"``.
        out: the folder to make.
        budgets, bits, ratios: the budgets, as sizes, as bits a parameter, as shares of the source.
        runtime: one for all; ``"auto"`` is chosen by the smallest budget.
        trials, data, samples, length, seed, device, dtype, restart, trust_remote_code, progress: as for
            :func:`compress.compress_to_budget`.

    Raises:
        UserError: anything that the user can mend, in one sentence, before any work.
    """
    amounts = _amounts(budgets, bits, ratios)
    keep_little_free_memory()
    out = Path(out)
    source = open_model(model, trust_remote_code)
    listener = progress or Silent()
    space, _ = open_space(source, runtime, amounts[0])
    by_size = sorted({bytes_of(amount, space.size): amount for amount in amounts}.items())
    space, _ = open_space(source, runtime, by_size[0][1])
    for size, amount in by_size:
        if is_copy(space, size):
            raise UserError(
                f"The budget {amount.text} holds the model as it is ({in_bytes(space.size.nbytes)}): leave it out."
            )
    calibrate = calibrate_of(data, samples, length)
    check_search_text(space.skeleton, calibrate)
    search = settings_of(space, calibrate, device, dtype, seed, trials)
    folders = {size: out / _name(amount) for size, amount in by_size}
    missing = [
        (size, amount) for size, amount in by_size if not _is_done(folders[size], size, space.runtime.name)
    ]
    if missing:
        asked = asked_of(source, search)
        folder = search_folder(out)
        check_passes({"budget": folder}, asked, restart=restart)
        with pass_folder(folder, asked):
            middle = 8 * sum(size for size, _ in by_size) / len(by_size) / max(1, space.size.numel)
            with BudgetSearch(space, search, middle, folder, listener) as searching:
                found = [searching.find(size, amount.text) for size, amount in missing]
            out.mkdir(parents=True, exist_ok=True)
            for one in found:
                output = Output(folders[one.budget], restart=restart)
                request = Request(
                    source, one.recipe, search.device, dtype, seed, None, out.absolute(), output
                )
                listener.note(f"{folders[one.budget].name}: {in_bytes(one.plan.total_bytes)}")
                run(request, listener, {RECIPE: recipe_text(one.recipe)}, one.figures)
    return _written(out, source.path.name, list(folders.values()))


def _amounts(budgets: Sequence[str | int], bits: Sequence[float], ratios: Sequence[float]) -> list[Amount]:
    parsed = [
        *(parse_amount(budget=value) for value in budgets),
        *(parse_amount(bits=value) for value in bits),
        *(parse_amount(ratio=value) for value in ratios),
    ]
    amounts = [amount for amount in parsed if amount is not None]
    if not amounts:
        raise UserError("Give budgets: --budgets 2GB,3GB,4GB, --bits 3,4 or --ratios 0.2,0.3.")
    return amounts


def _name(amount: Amount) -> str:
    """The folder of a budget: ``4GB``, ``3.5bits``, ``0.3ratio``."""
    if amount.kind == "size":
        return amount.text.replace(" ", "") if not amount.text.isdigit() else f"{amount.text}B"
    return f"{amount.value:g}{amount.kind}"


def _is_done(folder: Path, budget: int, runtime: str) -> bool:
    """Whether a budget's folder holds its finished output.

    Raises:
        UserError: it holds something else.
    """
    if not folder.exists():
        return False
    figures = _figures(folder)
    if figures.get("bytes") != budget or figures.get("runtime") != runtime:
        raise UserError(
            f"{folder} is there and is no output of this budget for {runtime}: choose another folder with -o."
        )
    return True


def _figures(folder: Path) -> dict[str, Any]:
    report = Report.read(folder / "compress.json")
    figures: dict[str, Any] = (report.sensitivity or {}).get("budget", {})
    return figures


def _written(out: Path, name: str, folders: Sequence[Path]) -> Sweep:
    """Write the table and the picture of finished outputs."""
    points = []
    for folder in folders:
        report, figures = Report.read(folder / "compress.json"), _figures(folder)
        points.append(
            SweepPoint(
                folder.name,
                figures["bytes"],
                report.bytes.actual,
                figures["measured_kl"],
                figures["predicted_kl"],
            )
        )
    result = Sweep(out, tuple(points))
    (out / TABLE).write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    write_text(out / PAGE, render_sweep(name, points), mark="· budgets</title>")
    return result
