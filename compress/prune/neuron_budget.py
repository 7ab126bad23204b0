"""Budget of neurons: how many each block keeps, by what their removal costs the model's loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compress.allocate.knapsack import Curve, allocate, curve
from compress.calibrate.gradient_store import block_file, gradient_moments
from compress.errors import UserError
from compress.linalg.eliminate import elimination_losses
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.prune.units import Part
from compress.recipe.sections import GRADIENT_TOKENS
from compress.score.fisher import Fisher
from compress.score.metric import Kron
from compress.score.statistics import Statistics
from compress.structures.choices import Choice, Option
from compress.system.precision import gradient_dtype

SCORE = Fisher(inputs="dense")
_TRIED = 32


def counts_by_loss(
    skeleton: Skeleton,
    part: Part,
    tokens: Tensor,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    seed: int,
    folder: Path,
    gradient_tokens: int = GRADIENT_TOKENS,
) -> dict[int, int]:
    """Block → how many units of ``part`` stay, together no more than with the same number in each block.

    In each block units are removed one after the other by what their reader's error costs in the Fisher metric of the dense
    model. The budget is spread over these curves as a multiple-choice knapsack, by their convex hulls.

    Args:
        skeleton: the model; no block may be loaded.
        part: the kind of unit.
        tokens: int64 ``[samples, length]``.
        device, dtype: where and in what the model is computed.
        seed: for their labels.
        folder: the gradient moments are written there, for :func:`rooted`.
        gradient_tokens: tokens that gradients are taken on, at most.

    Raises:
        UserError: gradients that are not finite or do not reach a block, or a model that they cannot be followed through.
    """
    needs = {view.name: SCORE.needs - {"gram"} for view in part.readers.values()}
    curves = {}
    where = torch.device(device)
    options: dict[str, Any] = {"device": where, "dtype": gradient_dtype(dtype, where)}
    options |= {"seed": seed, "folder": folder, "at_most": gradient_tokens}
    with gradient_moments(skeleton, tokens, needs, **options) as blocks:
        for index, moments in blocks:
            view = part.readers[index]
            metric = SCORE.metric(moments[view.name])
            if metric.left.matrix is None:
                raise UserError(
                    f"no gradient reaches {view.name}: leave out 'width_pruning.allocate', which goes by gradients"
                )
            weight = view.get(skeleton.parameter_of(view).detach()).float()
            gram = metric.right.full(weight.shape[1], where)
            curves[str(index)] = _curve(part, _rooted(weight, metric), gram)
    chosen = allocate(curves, "fisher")
    return {int(name): part.kept if choice is None else choice.rank for name, choice in chosen.items()}


def rooted(view: WeightView, weight: Tensor, folder: Path) -> Tensor:
    """A weight ``[out, in]`` scaled by the Fisher metric's left side ``S Sᵀ``: ``Sᵀ W``, fp32."""
    assert view.block is not None
    with safe_open(block_file(folder, view.block), framework="pt") as file:
        moments: Mapping[str, Any] = {
            key: file.get_tensor(f"{view.name}/{key}").to(weight.device)
            for key in ("output_gradient_gram", "dense_gram")
        }
    return _rooted(weight, SCORE.metric(Statistics(tokens=1, **moments)))


def _rooted(weight: Tensor, metric: Kron) -> Tensor:
    assert metric.left.matrix is not None
    return torch.linalg.cholesky(metric.left.matrix.double()).T.float() @ weight


def _curve(part: Part, weight: Tensor, gram: Tensor) -> Curve:
    units = torch.arange(weight.shape[1], device=weight.device).view(part.total, -1)
    stride = part.step * -(-part.total // (part.step * _TRIED))
    counts = [count for count in range(part.total - part.step, 0, -part.step) if count % stride == 0]
    losses = {part.total: 0.0, **elimination_losses(weight, gram, units, [*counts, part.step])}
    options = [Option(count, loss, Choice(count)) for count, loss in losses.items()]
    whole = float((weight.double() @ gram.double() * weight).sum())
    return curve(options, uniform=part.kept, whole=part.total + 1, total=whole, stays=False)
