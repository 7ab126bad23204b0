"""An estimate of the time that a run takes: passes over the text, statistics, solvers, and bytes read and written.

Work is counted in multiply-adds, bytes moved in memory and bytes of files, and divided by the rates of a machine
(:class:`compress.system.machine.Machine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compress.models.experts import CHOSEN
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.plan import Plan, PlannedWeight
from compress.planning.solver_costs import costs_of, search_cost
from compress.planning.work import START, Cost, Work
from compress.score.statistics import GRADIENT_NEEDS
from compress.solvers.base import BlockSolver
from compress.structures.grids.k_quants import GGUFGrid

_BACKWARD = 3.0
"""A forward and a backward pass, in forwards."""
_ATTENTION = 1.4
"""Scores and their products with the values, in products of weights: they run at less than the machine's best."""
_ELEMENTWISE = 25.0
"""How often norms, activations and the residual go through the bytes that a block computes for a token."""
_TRAINED = 60.0
"""Bytes for an element of a trained weight in one step: the variable, its gradient, the rounded weight."""
_BYTES = 900.0
"""Bytes moved in memory for each byte of the source: copies, conversions, hashes, packing, verification."""
_CHECKED = 4
"""Times that a byte of the source is read: solved, its outside checked, verified against the output, and hashed."""
_BY_WEIGHT = 0.01
"""Seconds for a weight between its solver and the disk: journal, records, names."""


def work_of(skeleton: Skeleton, plan: Plan, dtype: torch.dtype | None = None) -> Work | None:
    """What a run of a plan computes; None where it heals or searches, which is not estimated.

    Args:
        skeleton: the model.
        plan: of a recipe for it.
        dtype: in which blocks are computed; the model's own if None.
    """
    recipe = plan.recipe
    searches = recipe.depth_pruning is not None or recipe.width_pruning is not None or plan.rotation
    lowrank = any(step.lowrank is not None for step in recipe.all_steps)
    if recipe.heal is not None or searches or plan.transforms or lowrank:
        return None
    solving: dict[str, Cost] = {}
    for weight in plan.weights:
        for name, cost in costs_of(weight).items():
            solving[name] = solving.get(name, Cost()) + cost
        if isinstance(weight.methods.structure, GGUFGrid):
            solving["search"] = solving.get("search", Cost()) + search_cost(weight)
    kind = dtype or skeleton.dtype
    name = str(kind).removeprefix("torch.")
    moved = _BYTES * plan.source_bytes
    read, written = float(_CHECKED * plan.source_bytes), float(plan.total_bytes)
    fixed = START + _BY_WEIGHT * len(plan.weights)
    if not plan.needs_data:
        return Work(name, moved=moved, solving=solving, read=read, written=written, fixed=fixed)
    tokens = float(recipe.calibrate.samples * recipe.calibrate.length)
    passes, moments, trained = _Passes(skeleton, plan, kind), 0.0, _Training(0.0, 0.0)
    forwards, crosses = 0.0, 0.0
    for index in range(len(skeleton.blocks)):
        weights = plan.block(index)
        forwards += passes.of_block(index)
        grams, cross = _squares(skeleton, weights)
        # Half of a Gram matrix is computed, and mirrored.
        moments, crosses = moments + grams / 2, crosses + cross
        trained += passes.training(index, weights)
    blocks = tokens * (forwards + moments) + trained.products
    statistics = tokens * crosses
    if any(weight.needs & GRADIENT_NEEDS for weight in plan.weights):
        whole = sum(passes.size(index) for index in range(len(skeleton.blocks)))
        # Gradients are computed in fp32, and both sides' moments of every weight are gathered.
        statistics += tokens * (_BACKWARD * whole + sum(map(_moments, plan.weights)))
    moved += tokens * passes.moved + trained.moved
    return Work(name, blocks, statistics, moved, solving, read, written, fixed)


@dataclass(frozen=True)
class _Training:
    """What solvers of whole blocks compute: multiply-adds, and bytes moved."""

    products: float
    moved: float

    def __add__(self, other: _Training) -> _Training:
        return _Training(self.products + other.products, self.moved + other.moved)


@dataclass(frozen=True)
class _Passes:
    """Multiply-adds for a token of the passes over the blocks."""

    skeleton: Skeleton
    plan: Plan
    dtype: torch.dtype

    @property
    def streams(self) -> int:
        """The compressed model's activations, and the dense model's beside them."""
        return 2 if self.plan.needs_dense else 1

    def size(self, index: int) -> float:
        """One forward of a block: the parameters that a token meets, and attention."""
        return sum(map(self._met, self.skeleton.block_views(index))) + self._attention

    def of_block(self, index: int) -> float:
        """All forwards of a block: those that gather statistics end where the last input is recorded."""
        stagewise, before, total = self.plan.recipe.true_sequential, 0.0, 0.0
        for stage in self.skeleton.stages(index):
            total = total + before if stagewise else before
            before += sum(map(self._met, stage)) + (self._attention if not before else 0.0)
        return self.streams * (total + self.size(index))

    def training(self, index: int, weights: Sequence[PlannedWeight]) -> _Training:
        """The steps of solvers of the whole block."""
        solvers = {repr(one): one for weight in weights for one in weight.methods.block_solvers}
        numbers = sum(weight.numel for weight in weights if weight.methods.block_solvers)
        found = _Training(0.0, 0.0)
        for solver in solvers.values():
            steps, tokens = steps_of(solver), float(getattr(solver, "tokens", 2048))
            step = _Training(
                _BACKWARD * tokens * self.size(index),
                _TRAINED * numbers + _BACKWARD * tokens * _ELEMENTWISE * self._bytes,
            )
            found += _Training(steps * step.products, steps * step.moved)
        return found

    @property
    def moved(self) -> float:
        """Bytes that norms, activations and the residual move for a token, in all passes over all blocks."""
        passes = (
            len(self.skeleton.stages(0)) if self.plan.recipe.true_sequential and self.skeleton.blocks else 1
        )
        return self.streams * (passes + 1) * len(self.skeleton.blocks) * _ELEMENTWISE * self._bytes

    def _met(self, view: WeightView) -> float:
        """Multiply-adds of a weight for a token; of experts as many as a token is sent to."""
        size = float(view.shape[0] * view.shape[1])
        return size if view.expert is None else size * self._share

    @property
    def _share(self) -> float:
        """The share of a block's experts that a token meets; 1 where the configuration does not tell."""
        config = self.skeleton.model.config.get_text_config()
        every = _first(config, "num_experts", "num_local_experts", "n_routed_experts")
        chosen = _first(config, *CHOSEN)
        return 1.0 if not every or not chosen else min(1.0, chosen / every)

    @property
    def _attention(self) -> float:
        config = self.skeleton.model.config.get_text_config()
        heads = _first(config, "num_attention_heads") or 0
        width = heads * (_first(config, "head_dim") or self._hidden // max(1, heads))
        return _ATTENTION * 2.0 * self.plan.recipe.calibrate.length * width

    @property
    def _hidden(self) -> int:
        return int(self.skeleton.model.get_input_embeddings().weight.shape[-1])

    @property
    def _bytes(self) -> float:
        """What a block computes for a token, in bytes: as in :mod:`compress.planning.memory`."""
        config = self.skeleton.model.config.get_text_config()
        widest = _first(config, "intermediate_size") or 4 * self._hidden
        return float(self.dtype.itemsize * (6 * self._hidden + 3 * widest))


def steps_of(solver: BlockSolver) -> float:
    """Training steps of a solver of whole blocks, and its checks in them."""
    steps = getattr(solver, "iterations", None) or getattr(solver, "steps", 0)
    return 1.2 * float(steps or 0)


def _first(config: object, *names: str) -> int | None:
    """The first setting that is a number above 0; the largest where blocks have values of their own."""
    for name in names:
        value = getattr(config, name, None)
        value = max(value, default=None) if isinstance(value, list | tuple) else value
        if isinstance(value, int) and value > 0:
            return value
    return None


def _squares(skeleton: Skeleton, weights: Sequence[PlannedWeight]) -> tuple[float, float]:
    """Multiply-adds for a token of Gram and of cross moments ``[in, in]``; weights of the same input share theirs."""
    views = [weight.view for weight in weights]
    shared = {view.name: group[0].name for group in skeleton.fused_groups(views) for view in group}
    grams: dict[str, float] = {}
    crosses: dict[str, float] = {}
    for weight in weights:
        own = weight.name if "token_gradients" in weight.needs else shared.get(weight.name, weight.name)
        square = float(weight.view.shape[1] ** 2)
        if "gram" in weight.needs:
            grams[own] = square
        if "cross" in weight.needs:
            crosses[own] = square
    return sum(grams.values()), sum(crosses.values())


def _moments(weight: PlannedWeight) -> float:
    if not weight.needs & GRADIENT_NEEDS:
        return 0.0
    out, columns = weight.view.shape
    return float(out**2 + columns**2)
