"""Expert saliency: what the routed experts of every block add to its output, from one pass over calibration text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.calibrate.experts import eager_experts
from compress.calibrate.walk import walk_blocks
from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.prune.experts import RoutedExperts

By = Literal["reap", "frequency"]


@torch.no_grad()
def expert_saliency(
    skeleton: Skeleton,
    routed: RoutedExperts,
    tokens: Tensor,
    by: By,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> list[list[float]]:
    """The saliency of every routed expert, of the dense model.

    ``reap`` is router-weighted expert activation pruning (arXiv:2510.13999): the mean of ``g_j(x) · ‖f_j(x)‖₂``, router weight
    times norm of the output, over the tokens ``x`` that are sent to expert ``j``. ``frequency`` is the share of the tokens that
    are sent to it. An expert that no token reaches has 0.

    Args:
        skeleton: the model; no block may be loaded.
        routed: its experts.
        tokens: int64 ``[samples, length]``.
        by: the saliency.
        device, dtype: where and in what blocks are computed.

    Returns:
        Block with experts → expert → saliency.

    Raises:
        UserError: the code of the model does not hand the router's choices to its experts.
    """
    found: list[list[float]] = []
    last = max(routed.owners)
    with walk_blocks(skeleton, tokens, device=device, dtype=dtype) as walk:
        for index in walk:
            if index > last:
                break
            if index not in routed.owners:
                continue
            module: Any = skeleton.model.get_submodule(routed.owners[index])
            sums = torch.zeros(routed.total, 2, dtype=torch.float64)
            with eager_experts([module]):
                for hidden, experts, weights in routings(walk.stream.run(index), module, skeleton, index):
                    sums += _sums(module, hidden, experts, weights, routed.total)
            total, count = sums.unbind(1)
            value = count / tokens.numel() if by == "frequency" else total / count.clamp_min(1)
            found.append(value.tolist())
    return found


Routing = tuple[Tensor, Tensor, Tensor]
"""Inputs ``[tokens, hidden]``, the experts that each is sent to and their router weights ``[tokens, chosen]``."""


def routings(
    outputs: Iterator[Tensor], module: nn.Module, skeleton: Skeleton, index: int
) -> Iterator[Routing]:
    """What the experts of a block are given, batch by batch, as its ``outputs`` are asked for.

    Raises:
        UserError: the code of the model does not hand the router's choices to its experts.
    """
    with _recorded(module) as calls:
        for _ in outputs:
            if not calls or not all(_is_routing(call) for call in calls):
                raise UserError(
                    f"'width_pruning.experts': the code of {type(skeleton.model).__name__} does not tell the experts of block "
                    f"{index} which tokens are theirs, so that they cannot be scored; leave it out of the recipe"
                )
            yield from ((call[0].reshape(-1, call[0].shape[-1]), call[1], call[2]) for call in calls)
            calls.clear()


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    calls: list[tuple[Any, ...]] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((*args, *kwargs.values()))

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _is_routing(call: tuple[Any, ...]) -> bool:
    if len(call) != 3 or not all(isinstance(one, Tensor) for one in call):
        return False
    _, experts, weights = call
    return experts.shape == weights.shape and experts.dim() == 2 and not experts.is_floating_point()


def _sums(module: Any, hidden: Tensor, experts: Tensor, weights: Tensor, total: int) -> Tensor:
    """Expert → the sum of router weight times the norm of its output over its tokens, and their number: fp64 ``[total, 2]``."""
    sums = torch.zeros(total, 2, dtype=torch.float64)
    for expert in torch.unique(experts).tolist():
        if expert >= total:  # tokens that are sent nowhere
            continue
        rows, places = torch.where(experts == expert)
        output = output_alone(module, hidden[rows], expert, experts.dtype, weights.dtype)
        norms = output.float().norm(dim=-1) * weights[rows, places].float()
        sums[expert, 0] += float(norms.double().sum())
        sums[expert, 1] += len(rows)
    return sums


def output_alone(
    module: Any, hidden: Tensor, expert: int, numbers: torch.dtype, weights: torch.dtype
) -> Tensor:
    """An expert's output by itself, ``[tokens, hidden]``: its module is asked for these tokens, sent to it alone.

    Args:
        module: the experts of a block.
        hidden: ``[tokens, hidden]``.
        expert: its number.
        numbers, weights: dtypes of the router's choices and weights.
    """
    alone = torch.full((len(hidden), 1), expert, dtype=numbers, device=hidden.device)
    output: Tensor = type(module).forward(module, hidden, alone, torch.ones_like(alone, dtype=weights))
    return output
