"""Backward of the packed operators by their inputs.

For ``y = x Wᵀ + bias + residual`` the gradients are ``dx = dy W``, ``dbias`` the sum of ``dy`` over tokens, and
``dresidual = dy``. ``W`` is packed and has no gradient. It is decoded a few rows at a time, so that the backward never holds
the dense weight. An operator that rounds its inputs (int8) passes the gradient straight through the rounding. A second
derivative raises.

Each kind of weight has one gradient operator, opaque to ``torch.compile``; :func:`differentiable` registers it for each
backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .decode import int8_rows, mask_starts, masked_rows, nf4_rows, packed_rows, places_mask, planes_rows

_ELEMENTS = 1 << 22
"""Elements of the weight that are decoded at once."""

InputGradient = Callable[..., Tensor]
"""``(dy [..., out], *weight arguments) → dx [..., in]``."""


def differentiable(operator: str, gradient: InputGradient) -> None:
    """Register the backward of ``operator``, whose arguments are ``(x, *weight, bias, residual, out_dtype)``.

    Args:
        operator: its qualified name, ``namespace::name``.
        gradient: the input gradient in the dtype of ``dy``, which is given in the dtype of ``x``.
    """

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        weight = _restored(ctx)
        dx = gradient(dy.to(ctx.dtypes[0]), *weight) if ctx.needs_input_grad[0] else None
        return dx, *_none(weight), *_epilogue(ctx, dy), None

    torch.library.register_autograd(operator, backward, setup_context=_remember)


def differentiable_corrected(operator: str, gradient: InputGradient) -> None:
    """As :func:`differentiable`, for ``(x, *weight, inner, left, bias, residual, out_dtype)``: ``inner leftᵀ`` is added.

    ``inner`` ``[..., rank]`` has the gradient ``dy left``; ``left`` ``[out, rank]`` is part of the weight and has none.
    """

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        *weight, inner, left = _restored(ctx)
        dx = gradient(dy.to(ctx.dtypes[0]), *weight) if ctx.needs_input_grad[0] else None
        wanted = inner is not None and ctx.needs_input_grad[len(weight) + 1]
        dinner = dy.to(inner.dtype) @ left.to(inner.dtype) if wanted else None
        return dx, *_none(weight), dinner, None, *_epilogue(ctx, dy), None

    torch.library.register_autograd(operator, backward, setup_context=_remember)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the weight's arguments: tensors for backward, lists of tensors by their length, plain values as they are."""
    x, *weight, bias, residual, _ = inputs
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, bias, residual)]
    ctx.lists = [len(item) if isinstance(item, (list, tuple)) else None for item in weight]
    ctx.plain = [None if isinstance(item, (Tensor, list, tuple)) else item for item in weight]
    ctx.is_tensor = [isinstance(item, Tensor) for item in weight]
    ctx.bias = None if bias is None else tuple(bias.shape)
    tensors: list[Tensor] = []
    for item in weight:
        if isinstance(item, Tensor):
            tensors.append(item)
        elif isinstance(item, (list, tuple)):
            tensors.extend(item)
    ctx.save_for_backward(*tensors)


def _restored(ctx: Any) -> list[Any]:
    """The weight's arguments, as :func:`_remember` was given them."""
    tensors = iter(ctx.saved_tensors)
    weight: list[Any] = []
    for is_tensor, length, value in zip(ctx.is_tensor, ctx.lists, ctx.plain, strict=True):
        if is_tensor:
            weight.append(next(tensors))
        elif length is not None:
            weight.append([next(tensors) for _ in range(length)])
        else:
            weight.append(value)
    return weight


def _none(weight: Sequence[Any]) -> tuple[Any, ...]:
    """No gradient for each of the weight's arguments; for a list of tensors a list."""
    return tuple([None] * len(item) if isinstance(item, list) else None for item in weight)


def _epilogue(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by bias ``[out]`` and residual ``[..., out]``."""
    _, bias, residual = ctx.dtypes
    dbias = dresidual = None
    if bias is not None and ctx.needs_input_grad[-3]:
        dbias = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(bias).view(ctx.bias)
    if residual is not None and ctx.needs_input_grad[-2]:
        dresidual = dy.to(residual)
    return dbias, dresidual


def by_rows(dy: Tensor, columns: int, rows_of: Callable[[slice], Tensor]) -> Tensor:
    """``dy W`` for ``dy`` ``[..., out]``, a few rows of ``W`` ``[out, in]`` at a time; partial sums are fp32."""
    out = dy.shape[-1]
    flat = dy.reshape(-1, out)
    step = max(1, _ELEMENTS // max(1, columns))
    if step >= out:
        product = flat @ rows_of(slice(0, out))
        return product.view(*dy.shape[:-1], columns)
    total = torch.zeros(flat.shape[0], columns, dtype=torch.float32, device=dy.device)
    for start in range(0, out, step):
        rows = slice(start, min(start + step, out))
        total += flat[:, rows] @ rows_of(rows)
    return total.to(dy.dtype).view(*dy.shape[:-1], columns)


def _like(dy: Tensor, columns: int) -> Tensor:
    return dy.new_empty((*dy.shape[:-1], columns))


@torch.library.custom_op("compress_kernels::packed_input_gradient", mutates_args=())
def packed_gradient(
    dy: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, columns: int
) -> Tensor:
    """``dy W`` for packed integers."""
    return by_rows(dy, columns, lambda rows: packed_rows(codes, scale, zero, bits, columns, dy.dtype, rows))


@packed_gradient.register_fake
def _(dy: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, columns: int) -> Tensor:
    return _like(dy, columns)


@torch.library.custom_op("compress_kernels::planes_input_gradient", mutates_args=())
def planes_gradient(
    dy: Tensor,
    planes: Sequence[Tensor],
    widths: Sequence[int],
    scale: Tensor,
    zero: Tensor | None,
    columns: int,
) -> Tensor:
    """``dy W`` for packed integers in bit planes."""
    tensors, bits = list(planes), tuple(widths)
    return by_rows(dy, columns, lambda rows: planes_rows(tensors, bits, scale, zero, columns, dy.dtype, rows))


@planes_gradient.register_fake
def _(
    dy: Tensor,
    planes: Sequence[Tensor],
    widths: Sequence[int],
    scale: Tensor,
    zero: Tensor | None,
    columns: int,
) -> Tensor:
    return _like(dy, columns)


@torch.library.custom_op("compress_kernels::nf4_input_gradient", mutates_args=())
def nf4_gradient(dy: Tensor, packed: Tensor, absmax: Tensor, table: Tensor) -> Tensor:
    """``dy W`` for NF4."""
    columns = 2 * packed.shape[1]
    return by_rows(dy, columns, lambda rows: nf4_rows(packed, absmax, table, dy.dtype, rows))


@nf4_gradient.register_fake
def _(dy: Tensor, packed: Tensor, absmax: Tensor, table: Tensor) -> Tensor:
    return _like(dy, 2 * packed.shape[1])


@torch.library.custom_op("compress_kernels::int8_input_gradient", mutates_args=())
def int8_gradient(dy: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """``dy W`` for plain int8, straight through the rounding of the inputs."""
    return by_rows(dy, weight.shape[1], lambda rows: int8_rows(weight, scale, dy.dtype, rows))


@int8_gradient.register_fake
def _(dy: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return _like(dy, weight.shape[1])


@torch.library.custom_op("compress_kernels::masked_input_gradient", mutates_args=())
def masked_gradient(
    dy: Tensor,
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    columns: int,
) -> Tensor:
    """``dy W`` for a sparse weight under a bit mask."""
    return by_rows(
        dy,
        columns,
        lambda rows: masked_rows(mask, start, values, bits, scale, zero, columns, dy.dtype, rows),
    )


@masked_gradient.register_fake
def _(
    dy: Tensor,
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    columns: int,
) -> Tensor:
    return _like(dy, columns)


@torch.library.custom_op("compress_kernels::places_input_gradient", mutates_args=())
def places_gradient(
    dy: Tensor,
    places: Tensor,
    values: Tensor,
    bits: int,
    n: int,
    m: int,
    scale: Tensor | None,
    zero: Tensor | None,
    columns: int,
) -> Tensor:
    """``dy W`` for a sparse weight as the Triton kernels read it: a bit mask (``m`` is 0), or the places of N:M."""
    mask, start = places_mask(places, values, n, m, columns) if m else (places, mask_starts(places, bits))
    return by_rows(
        dy,
        columns,
        lambda rows: masked_rows(mask, start, values, bits, scale, zero, columns, dy.dtype, rows),
    )


@places_gradient.register_fake
def _(
    dy: Tensor,
    places: Tensor,
    values: Tensor,
    bits: int,
    n: int,
    m: int,
    scale: Tensor | None,
    zero: Tensor | None,
    columns: int,
) -> Tensor:
    return _like(dy, columns)


def dense_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """``dy W`` for a weight that is stored as it is."""
    return dy @ weight.to(dy.dtype)


def register_native() -> None:
    """Register the backward of the C++ operators, once they are loaded."""
    name = "compress_kernels::native_{}".format
    differentiable(
        name("packed"),
        lambda dy, codes, scale, zero, bits, group, k: packed_gradient(dy, codes, scale, zero, bits, k),
    )
    differentiable(name("nf4"), nf4_gradient)
    differentiable(
        name("sparse"),
        lambda dy, mask, start, values, bits, scale, zero, group, k: masked_gradient(
            dy, mask, start, values, bits, scale, zero, k
        ),
    )
    differentiable(name("int8"), int8_gradient)
    differentiable(name("dense"), dense_gradient)
