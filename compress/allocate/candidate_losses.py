"""What every candidate of every weight costs the model, in nats a token, from one backward pass over the dense model.

To second order the KL divergence of a model from its dense self is ``½ E[(δᵀ Δ x)²]`` for an error ``Δ`` of one weight, its
inputs ``x`` and the gradients ``δ`` by its outputs of the log-likelihood of tokens that the model itself draws (the Fisher
information). Losses of weights add up as far as their errors are independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from compress.allocate.candidates import DENSE, has_inputs
from compress.allocate.narrow_trials import NarrowFfn, cut, narrow_ffns, staying, widened
from compress.allocate.trial_weights import Losses, TrialWeights
from compress.allocate.units import Unit
from compress.calibrate.gradients import BlockGradients, backward
from compress.linalg.factor_cache import FactorCache
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.plan import PlannedWeight
from compress.score.metric import Elementwise, Kron, Metric, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, Solution
from compress.structures.base import CompressedWeight

JUDGED = 4096
"""Tokens, evenly spaced, on which errors are measured, at most."""
_EVERY = 4
"""One of so many batches is kept from the Gram matrices and judges the errors: solvers fit the inputs that they are given."""


@dataclass(frozen=True)
class Seen:
    """What a backward has shown of one weight.

    Attributes:
        statistics: the Gram matrix of its inputs.
        metric: for the solver.
        inputs, gradients: of some tokens, fp32 ``[tokens, in]`` and ``[tokens, out]``; None for experts.
        batches: that these tokens are of.
        squared: ``E[g²]`` fp32 ``[out, in]``, for experts.
    """

    statistics: Statistics
    metric: Metric
    inputs: Tensor | None = None
    gradients: Tensor | None = None
    batches: int = 1
    squared: Tensor | None = None

    def loss(self, delta: Tensor) -> float:
        """Nats a token that an error ``delta`` ``[out, in]`` costs, to second order."""
        if self.squared is not None:
            return 0.5 * float((self.squared * delta.square()).sum(dtype=torch.float64))
        assert self.inputs is not None
        assert self.gradients is not None
        moved = (self.inputs @ delta.T).mul_(self.gradients).sum(1)
        return 0.5 * float(moved.square().sum(dtype=torch.float64)) / self.batches


def candidate_losses(
    skeleton: Skeleton,
    units: Sequence[Unit],
    tokens: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    folder: Path,
) -> TrialWeights:
    """Solve every candidate of the weights in the blocks and measure its loss; blocks whose files are in ``folder`` are done.

    Args:
        skeleton: the model; no block may be loaded.
        units: its weights and their candidates.
        tokens: int64 ``[samples, length]``.
        device: where blocks run and weights are solved.
        dtype: what blocks are computed in.
        seed: for the tokens that the model draws.
        folder: for the trial weights and for hidden states.

    Raises:
        UserError: gradients that are not finite, or a model that has none.
    """
    trials = TrialWeights(folder, units)
    if not trials.has(None):
        _outside(skeleton, units, trials, device, dtype)
    if all(trials.has(index) for index in range(len(skeleton.blocks))):
        return trials
    with backward(
        skeleton, tokens, device=device, dtype=torch.float32, seed=seed, spill_dir=folder
    ) as blocks:
        for block in blocks:
            if not trials.has(block.index):
                _block(skeleton, units, block, trials)
    return trials


def losses_of(trials: TrialWeights, blocks: int) -> Losses:
    """Unit → candidate → the sum of its weights' losses; units outside of the blocks have none yet."""
    by_weight: dict[str, dict[str, float]] = {}
    for index in range(blocks):
        by_weight |= trials.losses(index)
    return {
        unit.name: {
            choice.label: 0.0
            if choice.label == DENSE
            else sum(by_weight[view.name][choice.label] for view in unit.views)
            for choice in unit.every
        }
        for unit in trials.units
        if all(view.block is not None for view in unit.views)
    }


def _planned(units: Sequence[Unit], block: int | None) -> dict[str, list[tuple[str, PlannedWeight]]]:
    """Weight of a block → its candidates."""
    found: dict[str, list[tuple[str, PlannedWeight]]] = {}
    for unit in units:
        for choice in unit.choices:
            for weight in choice.weights:
                if weight.view.block == block:
                    found.setdefault(weight.name, []).append((choice.label, weight))
    return found


def _block(skeleton: Skeleton, units: Sequence[Unit], block: BlockGradients, trials: TrialWeights) -> None:
    """The candidates of one loaded block."""
    planned = _planned(units, block.index)
    views = [view for view in skeleton.block_views(block.index) if view.name in planned]
    packed: dict[tuple[str, str], CompressedWeight] = {}
    losses: dict[str, dict[str, float]] = {}
    factors, last = FactorCache(), None
    observed = _observed(block, views)
    for view, seen in observed:
        if seen.statistics.gram is None or seen.statistics.gram is not last:
            factors.clear()
        last = seen.statistics.gram
        dense = view.get(skeleton.parameter_of(view).detach()).float()
        for label, weight in planned[view.name]:
            solution = _solve(weight, dense, seen, factors)
            packed[view.name, label] = solution.encode(weight.methods.structure)
            losses.setdefault(view.name, {})[label] = seen.loss(dense - solution.theta)
    kept = {}
    by_name = {view.name: seen for view, seen in observed}
    for ffn in narrow_ffns(units, block.index):
        whole = {view.name: view.get(skeleton.parameter_of(view).detach()).float() for view in ffn.views}
        kept[ffn.kept] = _narrow(ffn, whole, by_name, packed, losses)
    trials.save(block.index, packed, losses, kept, _removal(block))


def _narrow(
    ffn: NarrowFfn,
    dense: Mapping[str, Tensor],
    observed: Mapping[str, Seen],
    packed: dict[tuple[str, str], CompressedWeight],
    losses: dict[str, dict[str, float]],
) -> Tensor:
    """The candidates of a narrow FFN; which neurons stay, int64."""
    reader = ffn.reader.name
    kept, fitted = staying(dense[reader], observed[reader].statistics.gram, ffn.kept)
    for name, choices in ffn.choices.items():
        whole, seen, factors = dense[name], observed[name], FactorCache()
        target, gram = fitted if name == reader else whole, seen.statistics.gram
        if name == reader and gram is not None:
            gram = gram[kept][:, kept]
            seen = replace(
                seen, statistics=Statistics(seen.statistics.tokens, gram=gram), metric=Kron(right=Side(gram))
            )
        for choice in choices:
            (weight,) = choice.weights
            solution = _solve(weight, cut(target, weight.view.shape, kept), seen, factors)
            packed[name, choice.label] = solution.encode(weight.methods.structure)
            theta = widened(solution.theta, ffn.whole(name), kept)
            # What makes a neuron that nothing reads costs nothing.
            moved = (
                whole - theta
                if name == reader
                else widened(cut(whole, weight.view.shape, kept), ffn.whole(name), kept) - theta
            )
            losses[name][choice.label] = seen.loss(moved)
    return kept


def _removal(block: BlockGradients) -> float | None:
    """What the model loses without the block, to second order."""
    total = [
        float((moved * gradient).sum(1).square().sum(dtype=torch.float64))
        for moved, gradient in block.by_block()
    ]
    return 0.5 * sum(total) / len(total) if total else None


def _outside(
    skeleton: Skeleton, units: Sequence[Unit], trials: TrialWeights, device: torch.device, dtype: torch.dtype
) -> None:
    """Embeddings and head, rounded without data; their losses are measured, not predicted."""
    packed: dict[tuple[str, str], CompressedWeight] = {}
    planned = _planned(units, None)
    if planned:
        with skeleton.loaded_rest(device=device, dtype=dtype, head=True):
            for choices in planned.values():
                for label, weight in choices:
                    dense = weight.view.get(skeleton.parameter_of(weight.view).detach()).float()
                    seen = Seen(Statistics(), Kron())
                    packed[weight.name, label] = _solve(weight, dense, seen, FactorCache()).encode(
                        weight.methods.structure
                    )
    trials.save(None, packed, {})


def _solve(weight: PlannedWeight, dense: Tensor, seen: Seen, factors: FactorCache) -> Solution:
    problem = Problem(dense, weight.methods.structure, seen.metric, seen.statistics, 0, factors)
    solution: Solution | None = None
    for solver in weight.methods.solvers:
        solution = solver.solve(problem, solution)
    assert solution is not None
    return solution


def _observed(block: BlockGradients, views: Sequence[WeightView]) -> list[tuple[WeightView, Seen]]:
    """What the backward shows of each weight; weights that read the same inputs follow each other and share a Gram matrix."""
    direct = [view for view in views if has_inputs(view) and block.has_output_gradients(view)]
    found = _by_tokens(block, direct) if direct else []
    seen = {view.name for view, _ in found}
    rest = [view for view in views if view.name not in seen]
    return [*found, *(_by_elements(block, rest) if rest else [])]


def _by_tokens(block: BlockGradients, views: Sequence[WeightView]) -> list[tuple[WeightView, Seen]]:
    grams: dict[str, Tensor] = {}
    inputs: dict[str, list[Tensor]] = {}
    gradients: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    judging = {number for number in range(block.count) if block.count == 1 or number % _EVERY == _EVERY - 1}
    judging = judging or {block.count - 1}
    for number, batch in enumerate(block.by_output(views)):
        for name, (x, by_output) in batch.items():
            if number not in judging or block.count == 1:
                gram = x.T @ x
                grams[name] = gram if name not in grams else grams[name].add_(gram)
                counts[name] = counts.get(name, 0) + len(x)
            if number in judging:
                kept = _evenly(len(x), JUDGED // len(judging), x.device)
                inputs.setdefault(name, []).append(x[kept])
                # Gradients are divided by the root of a batch's tokens: their squares summed over it are a mean.
                gradients.setdefault(name, []).append(by_output[kept] * (len(x) / len(kept)) ** 0.5)
    found: list[tuple[WeightView, Seen]] = []
    shared: list[Tensor] = []
    for view in views:
        if view.name not in grams or view.name not in inputs:
            continue
        gram = grams[view.name].div_(counts[view.name])
        gram = next(
            (other for other in shared if other.shape == gram.shape and torch.equal(other, gram)), gram
        )
        shared.append(gram)
        statistics = Statistics(counts[view.name], gram=gram)
        x, g = torch.cat(inputs.pop(view.name)), torch.cat(gradients.pop(view.name))
        found.append((view, Seen(statistics, Kron(right=Side(gram)), x, g, batches=len(judging))))
    return sorted(
        found, key=lambda one: next(i for i, gram in enumerate(shared) if gram is one[1].statistics.gram)
    )


def _by_elements(block: BlockGradients, views: Sequence[WeightView]) -> list[tuple[WeightView, Seen]]:
    squared: Mapping[str, Tensor] = {}
    for batch in block.by_weight(views):
        squared = {
            name: (gradient.square() if name not in squared else squared[name].add_(gradient.square()))
            for name, gradient in batch.items()
        }
    found = []
    for view in views:
        mean = squared[view.name] / block.count
        counts = float(mean.sum()) > 0 and not has_inputs(view)
        metric: Metric = Elementwise(mean) if counts else Kron()
        found.append((view, Seen(Statistics(), metric, squared=mean)))
    return found


def _evenly(count: int, most: int, device: torch.device) -> Tensor:
    """Places of at most ``most`` tokens among ``count``, int64."""
    return torch.linspace(0, count - 1, min(count, max(1, most)), device=device).long()
