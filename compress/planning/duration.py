"""An estimate of the time that a run takes: passes over the text, statistics, solvers, and bytes read and written.

Work is counted in multiply-adds, as a pass over a token costs the parameters of the blocks, and divided by the rate that the
machine multiplies at. The factors below were fitted to runs on one CPU core; ``docs/recipes.md`` says how near they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.models.skeleton import Skeleton
from compress.planning.plan import Plan, PlannedWeight
from compress.score.statistics import GRADIENT_NEEDS
from compress.structures.grids.k_quants import GGUFGrid
from compress.system.rate import Rate

_SQUARES = frozenset({"gram", "cross"})
_INTO_FACTORS = 3.0
"""A damped factor and its inverse, in ``in³``."""
_SOLVERS: Mapping[str, tuple[float, float]] = {
    "Nearest": (0.0, 0.0),
    "GPTQ": (150e-6, 10.0),
    "GroupScales": (300e-6, 5.0),
    "CoordinateDescent": (500e-6, 10.0),
    "YAQA": (3300e-6, 20.0),
}
"""Solver → seconds for a column, most of them between small products, and products of ``out · in²``."""
_OTHER_SOLVER = (500e-6, 10.0)
_SEARCHED = 25_000.0
"""Multiply-adds for an element of a grid of GGUF, whose scales are searched."""
_BACKWARD = 3.0
"""A forward and a backward pass, in forwards."""
_BYTES = 4000.0
"""Reading, hashing, packing, writing and verifying a byte of the source, in multiply-adds of fp32."""
_START = 10.0
"""Seconds for Python, its libraries, and the process of its own that opens the output."""


@dataclass(frozen=True)
class Work:
    """What a run computes.

    Attributes:
        blocks: multiply-adds of passes, in the blocks' dtype.
        statistics: multiply-adds of statistics and solvers and for bytes, in fp32.
        fixed: seconds that do not depend on the rate.
    """

    blocks: float
    statistics: float
    fixed: float = _START

    def seconds(self, rate: Rate) -> float:
        """The time of a run at a machine's rate."""
        return self.fixed + self.blocks / rate.blocks + self.statistics / rate.statistics


def work_of(skeleton: Skeleton, plan: Plan) -> Work | None:
    """What a run of a plan computes; None where it trains or searches, which is not estimated.

    Args:
        skeleton: the model.
        plan: of a recipe for it.
    """
    recipe = plan.recipe
    trains = recipe.heal is not None or any(weight.methods.block_solvers for weight in plan.weights)
    searches = recipe.depth_pruning is not None or recipe.width_pruning is not None or plan.rotation
    if trains or searches or plan.transforms or any(step.lowrank is not None for step in recipe.all_steps):
        return None
    fixed, solving = _START, _BYTES * plan.source_bytes
    for weight in plan.weights:
        seconds, products = _solving(weight)
        fixed, solving = fixed + seconds, solving + products
    if not plan.needs_data:
        return Work(0.0, solving, fixed)
    tokens = recipe.calibrate.samples * recipe.calibrate.length
    streams = 2 if plan.needs_dense else 1
    passes, squares = 0.0, 0.0
    for index in range(len(skeleton.blocks)):
        weights = plan.block(index)
        passes += streams * (_observed(skeleton, index, recipe.true_sequential) + _size(skeleton, index))
        squares += _squares(skeleton, weights)
    blocks, statistics = tokens * passes, tokens * squares + solving
    if any(weight.needs & GRADIENT_NEEDS for weight in plan.weights):
        whole = sum(_size(skeleton, index) for index in range(len(skeleton.blocks)))
        # Gradients are computed in fp32, and both sides' moments of every weight are gathered.
        statistics += tokens * (_BACKWARD * whole + sum(map(_moments, plan.weights)))
    return Work(blocks, statistics, fixed)


def _size(skeleton: Skeleton, index: int) -> float:
    """Parameters of a block that a token meets."""
    return float(sum(view.shape[0] * view.shape[1] for view in skeleton.block_views(index)))


def _observed(skeleton: Skeleton, index: int, stagewise: bool) -> float:
    """Multiply-adds for a token of the forwards that gather statistics: each ends where the last input is recorded."""
    before, total = 0.0, 0.0
    for stage in skeleton.stages(index):
        total = total + before if stagewise else before
        before += sum(view.shape[0] * view.shape[1] for view in stage)
    return total


def _squares(skeleton: Skeleton, weights: Sequence[PlannedWeight]) -> float:
    """Multiply-adds for a token of moments ``[in, in]``; weights that read the same input share theirs."""
    views = [weight.view for weight in weights]
    shared = {view.name: group[0].name for group in skeleton.fused_groups(views) for view in group}
    found: dict[str, float] = {}
    for weight in weights:
        count = len(weight.needs & _SQUARES)
        own = weight.name if "token_gradients" in weight.needs else shared.get(weight.name, weight.name)
        found[own] = max(found.get(own, 0.0), float(count * weight.view.shape[1] ** 2))
    return sum(found.values())


def _moments(weight: PlannedWeight) -> float:
    if not weight.needs & GRADIENT_NEEDS:
        return 0.0
    out, columns = weight.view.shape
    return float(out**2 + columns**2)


def _solving(weight: PlannedWeight) -> tuple[float, float]:
    """Seconds between products, and multiply-adds, of a weight's factor and its solvers."""
    out, columns = weight.view.shape
    factor = _INTO_FACTORS * columns**3 if weight.needs & _SQUARES else 0.0
    solvers = [_SOLVERS.get(type(one).__name__, _OTHER_SOLVER) for one in weight.methods.solvers]
    by_column, products = (sum(column) for column in zip(*solvers, strict=True))
    searched = _SEARCHED * out * columns if isinstance(weight.methods.structure, GGUFGrid) else 0.0
    return by_column * columns, factor + searched + products * out * columns**2
