"""Block forward for block solvers: a loaded block run on calibration inputs with some of its weights replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    """

    skeleton: Skeleton
    stream: BlockStream
    index: int
    views: Mapping[str, WeightView]

    def __call__(self, batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The block's output with weights ``thetas`` ``[out, in]``, differentiable in them, and the dense output."""
        by_parameter: dict[str, list[str]] = {}
        for name in thetas:
            by_parameter.setdefault(self.views[name].parameter, []).append(name)
        prefix = self.skeleton.blocks[self.index] + "."
        replaced = {
            parameter.removeprefix(prefix): put_together(
                self.skeleton.model.get_parameter(parameter).detach(),
                [self.views[name] for name in names],
                [thetas[name] for name in names],
            )
            for parameter, names in by_parameter.items()
        }
        return self.stream.replay(self.index, batch, replaced)


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
