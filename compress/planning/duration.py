"""An estimate of the time that a run takes: passes over the text, statistics, solvers, and bytes read and written.

Work is counted in multiply-adds, bytes moved in memory and bytes of files, and divided by the rates of a machine
(:class:`compress.system.machine.Machine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from compress.models.experts import CHOSEN
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.gradient_pass import gradients_work
from compress.planning.plan import Plan, PlannedWeight
from compress.planning.solver_costs import costs_of, search_cost
from compress.planning.training_work import block_runs, healing_runs, windows_of
from compress.planning.work import START, Cost, Work
from compress.recipe.heal import Heal
from compress.score.statistics import GRADIENT_NEEDS
from compress.structures.grids.k_quants import GGUFGrid
from compress.system.precision import planned_gradient_dtype

_BACKWARD = 3.0
"""A forward and a backward pass, in forwards."""
_ATTENTION = 1.4
"""Scores and their products with the values, in products of weights: they run at less than the machine's best."""
_ELEMENTWISE = 25.0
"""How often norms, activations and the residual go through the bytes that a block computes for a token."""
_TRAINED = {"SignRound": 60.0, "GSQ": 570.0, "Reconstruct": 25.0, "Lottery": 230.0, "LearnedMasks": 255.0}
"""Bytes for an element of a trained weight in one step, by solver: the variables, their gradients, the rounded weight. Those
beside SignRound's are in proportion to it, by steps on one weight of 768 columns."""
_TRAINED_OTHERWISE = 60.0
_LOGITS = 60.0
"""Bytes for a logit of a trained token: the loss and its gradient, in fp32."""
_OPENED = 2
"""Times that a byte is read for healing: the dense model, and the compressed one that is copied and verified."""
_BYTES = 900.0
"""Bytes moved in memory for each byte of the source: copies, conversions, hashes, packing, verification."""
_CHECKED = 4
"""Times that a byte of the source is read: solved, its outside checked, verified against the output, and hashed."""
_BY_WEIGHT = 0.01
"""Seconds for a weight between its solver and the disk: journal, records, names."""


def work_of(skeleton: Skeleton, plan: Plan, dtype: torch.dtype | None = None) -> Work | None:
    """What a run of a plan computes; None where it searches or factorises, which is not estimated.

    Args:
        skeleton: the model.
        plan: of a recipe for it.
        dtype: in which blocks are computed; the model's own if None.
    """
    recipe = plan.recipe
    searches = recipe.depth_pruning is not None or recipe.width_pruning is not None or plan.rotation
    lowrank = any(step.lowrank is not None for step in recipe.all_steps)
    if searches or plan.transforms or lowrank:
        return None
    work = _of_steps(skeleton, plan, dtype or skeleton.dtype)
    if recipe.heal is None:
        return work
    return _healed(work, _Passes(skeleton, plan, dtype or skeleton.dtype, recipe.heal.length), recipe.heal)


def _of_steps(skeleton: Skeleton, plan: Plan, kind: torch.dtype) -> Work:
    """What the steps of a recipe compute."""
    recipe = plan.recipe
    solving: dict[str, Cost] = {}
    for weight in plan.weights:
        for name, cost in costs_of(weight).items():
            solving[name] = solving.get(name, Cost()) + cost
        if isinstance(weight.methods.structure, GGUFGrid):
            solving["search"] = solving.get("search", Cost()) + search_cost(weight)
    name = str(kind).removeprefix("torch.")
    moved = _BYTES * plan.source_bytes
    read, written = float(_CHECKED * plan.source_bytes), float(plan.total_bytes)
    fixed = START + _BY_WEIGHT * len(plan.weights)
    if not plan.needs_data:
        return Work(name, moved=moved, solving=solving, read=read, written=written, fixed=fixed)
    tokens = float(recipe.calibrate.samples * recipe.calibrate.length)
    passes, moments, trained = (
        _Passes(skeleton, plan, kind, recipe.calibrate.length),
        0.0,
        _Training(0.0, 0.0),
    )
    forwards, crosses = 0.0, 0.0
    for index in range(len(skeleton.blocks)):
        weights = plan.block(index)
        forwards += passes.of_block(index)
        grams, cross = _squares(skeleton, weights)
        # Half of a Gram matrix is computed, and mirrored.
        moments, crosses = moments + grams / 2, crosses + cross
        trained += passes.training(index, weights)
    blocks, statistics = tokens * (forwards + moments + crosses) + trained.products, 0.0
    if any(weight.needs & GRADIENT_NEEDS for weight in plan.weights):
        whole = sum(passes.size(index) for index in range(len(skeleton.blocks)))
        needs = {weight.name: weight.needs for weight in plan.weights}
        in_dtype = planned_gradient_dtype(kind, "cpu")
        seen = min(tokens, max(recipe.calibrate.gradient_tokens, recipe.calibrate.length))
        products = seen * gradients_work(skeleton, needs, whole)
        if in_dtype == kind:
            blocks += products
        else:
            statistics = products
    moved += tokens * passes.moved + trained.moved
    return Work(name, blocks, statistics, moved, solving, read, written, fixed)


def _healed(work: Work, passes: _Passes, heal: Heal) -> Work:
    """The work of the steps, and of healing behind them."""
    runs, plan = healing_runs(heal), passes.plan
    whole, words = passes.whole_model, passes.words
    weights = float(sum(weight.numel for weight in plan.weights))
    # Elements of every weight are decoded, and their gradients gathered, in each step; for a measurement once.
    measured = runs.held_out / runs.first
    moved = passes.moved_by(runs.passes) + _LOGITS * words * (runs.trained + runs.held_out)
    moved += _TRAINED_OTHERWISE * weights * (runs.steps + measured / 2) + _BYTES * plan.source_bytes
    return replace(
        work,
        blocks=work.blocks + whole * runs.passes,
        moved=work.moved + moved,
        read=work.read + _OPENED * plan.source_bytes,
        written=work.written + plan.total_bytes,
    )


@dataclass(frozen=True)
class _Training:
    """What solvers of whole blocks compute: multiply-adds, and bytes moved."""

    products: float
    moved: float

    def __add__(self, other: _Training) -> _Training:
        return _Training(self.products + other.products, self.moved + other.moved)


@dataclass(frozen=True)
class _Passes:
    """Multiply-adds for a token of the passes over the blocks, in windows of ``length`` tokens."""

    skeleton: Skeleton
    plan: Plan
    dtype: torch.dtype
    length: int

    @property
    def streams(self) -> int:
        """The compressed model's activations, and the dense model's beside them."""
        return 2 if self.plan.needs_dense else 1

    def size(self, index: int) -> float:
        """One forward of a block: the parameters that a token meets, and attention."""
        return sum(map(self._met, self.skeleton.block_views(index))) + self._attention

    def of_block(self, index: int) -> float:
        """All forwards of a block: those that gather statistics end where the last input is recorded.

        The dense model's of the last stage goes on to its outputs.
        """
        stagewise, before, total, last = self.plan.recipe.true_sequential, 0.0, 0.0, 0.0
        for stage in self.skeleton.stages(index):
            total, last = total + before if stagewise else before, before
            before += sum(map(self._met, stage)) + (self._attention if not before else 0.0)
        return self.streams * (total + self.size(index)) - (last if self.plan.needs_dense else 0.0)

    def training(self, index: int, weights: Sequence[PlannedWeight]) -> _Training:
        """The steps of solvers of the whole block, and what judges them."""
        solvers = {repr(one): one for weight in weights for one in weight.methods.block_solvers}
        found = _Training(0.0, 0.0)
        if not solvers:
            return found
        samples = self.plan.recipe.calibrate.samples
        together = windows_of(tuple(solvers.values()), samples, self.length)
        together = min(together, self.plan.economy.windows or together)
        tokens = float(together * self.length)
        for key, solver in solvers.items():
            runs = block_runs(solver, -(-samples // together))
            passes = _BACKWARD * runs.trained + runs.judged
            numbers = sum(w.numel for w in weights if key in map(repr, w.methods.block_solvers))
            element = _TRAINED.get(type(solver).__name__, _TRAINED_OTHERWISE)
            found += _Training(
                passes * tokens * self.size(index),
                runs.trained * element * numbers + passes * tokens * _ELEMENTWISE * self._bytes,
            )
        return found

    @property
    def whole_model(self) -> float:
        """One forward of the model, its output head among it."""
        blocks = sum(self.size(index) for index in range(len(self.skeleton.blocks)))
        return blocks + float(self.words * self._hidden)

    @property
    def words(self) -> int:
        """Logits of a token."""
        return int(self.skeleton.model.get_input_embeddings().weight.shape[0])

    def moved_by(self, tokens: float) -> float:
        """Bytes that norms, activations and the residual move where ``tokens`` go through all blocks."""
        return tokens * len(self.skeleton.blocks) * _ELEMENTWISE * self._bytes

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
        return _ATTENTION * 2.0 * self.length * width

    @property
    def _hidden(self) -> int:
        return int(self.skeleton.model.get_input_embeddings().weight.shape[-1])

    @property
    def _bytes(self) -> float:
        """What a block computes for a token, in bytes: as in :mod:`compress.planning.memory`."""
        config = self.skeleton.model.config.get_text_config()
        widest = _first(config, "intermediate_size") or 4 * self._hidden
        return float(self.dtype.itemsize * (6 * self._hidden + 3 * widest))


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
