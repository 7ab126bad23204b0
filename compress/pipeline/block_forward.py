"""Block forward for block solvers: a loaded block run on calibration inputs with some of its weights replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.calibrate.stream import BlockStream
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView


@dataclass(frozen=True)
class BlockRun:
    """The ``run`` of a :class:`~compress.solvers.base.BlockProblem`.

    Attributes:
        skeleton: the model; block ``index`` is loaded.
        stream: its activations, those of the dense model behind the block already.
        views: the weights that may be replaced, by name.
        parts: how many of the stream's batches make one of training.
    """

    skeleton: Skeleton
    stream: BlockStream
    index: int
    views: Mapping[str, WeightView]
    parts: int = 1

    def __call__(self, batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The block's output with weights ``thetas`` ``[out, in]``, differentiable in them, and the dense output."""
        block, prefix = self.skeleton.block_module(self.index), self.skeleton.blocks[self.index] + "."
        parameters = replaced(block, prefix, self.views, thetas)
        found = [self.stream.replay(self.index, part, parameters) for part in self.parts_of(batch)]
        outputs, targets = zip(*found, strict=True)
        return (outputs[0], targets[0]) if len(found) == 1 else (torch.cat(outputs), torch.cat(targets))

    def parts_of(self, batch: int) -> range:
        """The stream's batches that make one of training."""
        return range(batch * self.parts, min((batch + 1) * self.parts, self.stream.batches))

    @property
    def batches(self) -> int:
        """How many batches of training there are."""
        return -(-self.stream.batches // self.parts)


def replaced(
    block: nn.Module, prefix: str, views: Mapping[str, WeightView], thetas: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The parameters of a block that hold weights ``thetas`` ``[out, in]`` in the place of its own, by name within the block.

    Args:
        block: its module.
        prefix: its name, with a dot behind it.
        views: the weights that may be replaced, by name.
        thetas: those that are; the result is differentiable in them.
    """
    by_parameter: dict[str, list[str]] = {}
    for name in thetas:
        by_parameter.setdefault(views[name].parameter.removeprefix(prefix), []).append(name)
    return {
        parameter: put_together(
            block.get_parameter(parameter).detach(),
            [views[name] for name in names],
            [thetas[name] for name in names],
        )
        for parameter, names in by_parameter.items()
    }


def put_together(parameter: Tensor, views: Sequence[WeightView], thetas: Sequence[Tensor]) -> Tensor:
    """``parameter`` with the weights of ``views`` replaced by ``thetas`` ``[out, in]``, differentiable in them."""
    result: Tensor = _PutTogether.apply(parameter, tuple(views), *thetas)
    return result


class _PutTogether(torch.autograd.Function):
    """One copy of the parameter however many weights it holds; the gradient of each is read where it lies."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, views: tuple[WeightView, ...], *thetas: Tensor) -> Tensor:
        ctx.views, ctx.dtypes = views, [theta.dtype for theta in thetas]
        whole = parameter.clone()
        for view, theta in zip(views, thetas, strict=True):
            view.put(whole, theta)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        pairs = zip(ctx.views, ctx.dtypes, strict=True)
        return None, None, *(view.get(gradient).to(dtype).contiguous() for view, dtype in pairs)
