"""Backward of the packed products: ``dx = dy W`` by the input, the bias and the residual; packed weights are constants.

W is decoded a piece of rows at a time, so that a backward needs the memory of one piece, not of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import gather

Rows = Callable[..., Tensor]
"""``rows(*operands, dtype, rows)``: decoded rows ``[rows, in]`` of W, in ``dtype``, for a slice of rows or their ids; see
``compress_kernels.decode``."""

F = TypeVar("F", bound=Callable[..., Tensor])

PIECE = 1 << 22
"""Weights that are decoded at once."""


def needs_gradient(*inputs: Tensor | None) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)


def is_plain(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a kernel may be launched on ``x`` without an operator of torch around it, which costs tens of microseconds.

    Not where autograd records, a compiler traces, or ``x`` is of a subclass (a tensor without values, for one).
    """
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter
    return plain and not needs_gradient(x, *others) and not torch.compiler.is_compiling()


def product(name: str, rows: Rows) -> Callable[[F], F]:
    """Register ``function(x, *operands, bias, residual, out)`` as the operator ``compress_kernels::{name}``.

    Beside it stands ``compress_kernels::{name}_gather``, the rows that are asked for by their ids.

    The result has the shape ``[…, out]``, ``out`` being the number of rows of the first operand (or of its first
    tensor, where it is a list), and the dtype of the last argument. The backward is an operator of its own,
    ``compress_kernels::{name}_gradient``, which multiplies with what ``rows`` decodes; where the forward rounds ``x``
    the backward passes straight through. It has no backward itself: a second derivative raises ``RuntimeError``.
    """

    def register(function: F) -> F:
        operator = torch.library.custom_op(f"compress_kernels::{name}", function, mutates_args=())

        @operator.register_fake
        def _(x: Tensor, *arguments: Any) -> Tensor:
            first = arguments[0][0] if isinstance(arguments[0], list | tuple) else arguments[0]
            return x.new_empty((*x.shape[:-1], first.shape[0]), dtype=arguments[-1])

        gradient = _gradient_operator(name, function, rows)
        operator.register_autograd(_backward(gradient), setup_context=_save)
        gather.register(name, _operand_schemas(function), rows)
        return operator  # type: ignore[return-value]

    return register


def input_gradient(
    dy: Tensor, rows: Callable[[torch.dtype, slice], Tensor], columns: int, dtype: torch.dtype
) -> Tensor:
    """``dx = dy W`` ``[…, in]`` in ``dtype``, from ``dy`` ``[…, out]`` and decoded rows; pieces are added in fp32."""
    out = dy.shape[-1]
    # Products in fp16 are slow on a CPU, where the forward computes in fp32 as well.
    compute = torch.float32 if dtype == torch.float16 and dy.device.type == "cpu" else dtype
    flat = dy.reshape(-1, out).to(compute)
    piece = max(1, PIECE // max(columns, 1))
    if out <= piece:
        dx = flat @ rows(compute, slice(0, out))
    else:
        dx = torch.zeros(flat.shape[0], columns, dtype=torch.float32, device=dy.device)
        for first in range(0, out, piece):
            part = slice(first, min(first + piece, out))
            dx += flat[:, part] @ rows(compute, part)
    return dx.to(dtype).view(*dy.shape[:-1], columns)


def _operand_schemas(function: Callable[..., Tensor]) -> list[str]:
    """What the schema of ``function`` says of its operands: all but ``x``, ``bias``, ``residual`` and ``out``."""
    schema = torch.library.infer_schema(function, mutates_args=())
    return schema[1 : schema.index(") ->")].split(", ")[1:-3]


def _gradient_operator(name: str, function: Callable[..., Tensor], rows: Rows) -> Callable[..., Tensor]:
    """The operator ``(dy, *operands, columns, dtype) → dx``, with the operands of ``function``."""
    operands = _operand_schemas(function)

    def compute(dy: Tensor, *arguments: Any) -> Tensor:
        *values, columns, dtype = arguments
        return input_gradient(dy, lambda wide, part: rows(*values, wide, part), columns, dtype)

    operator = torch.library.custom_op(
        f"compress_kernels::{name}_gradient",
        compute,
        mutates_args=(),
        schema=f"({', '.join(['Tensor dy', *operands, 'int columns', 'ScalarType dtype'])}) -> Tensor",
    )

    @operator.register_fake
    def _(dy: Tensor, *arguments: Any) -> Tensor:
        return dy.new_empty((*dy.shape[:-1], arguments[-2]), dtype=arguments[-1])

    @operator.register_autograd
    def _(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(f"compress_kernels::{name} has no second derivative")

    return operator


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the operands, of ``x`` the width and dtype alone: nothing of the size of an activation is held."""
    x, *operands, bias, residual, _ = inputs
    tensors = [_tensors(operand) for operand in operands]
    if any(tensor.requires_grad for group in tensors for tensor in group):
        raise RuntimeError("packed weights have no gradient: only x, bias and residual may require one")
    ctx.save_for_backward(*(tensor for group in tensors for tensor in group))
    # Tensors of each operand: a positive number for a list of them, −1 for one tensor, 0 for a constant.
    ctx.constants = [None if group else operand for group, operand in zip(tensors, operands, strict=True)]
    ctx.counts = [
        len(group) if isinstance(operand, list | tuple) else -len(group)
        for group, operand in zip(tensors, operands, strict=True)
    ]
    ctx.x = (x.shape[-1], x.dtype)
    ctx.bias = None if bias is None else (bias.shape, bias.dtype)
    ctx.residual = None if residual is None else (residual.shape, residual.dtype)


def _tensors(operand: Any) -> list[Tensor]:
    if isinstance(operand, Tensor):
        return [operand]
    return list(operand) if isinstance(operand, list | tuple) else []


def _operands(ctx: Any) -> list[Any]:
    """Invert :func:`_save`: the operands as the forward was given them."""
    saved = iter(ctx.saved_tensors)
    operands: list[Any] = []
    for constant, count in zip(ctx.constants, ctx.counts, strict=True):
        if count > 0:
            operands.append([next(saved) for _ in range(count)])
        else:
            operands.append(next(saved) if count else constant)
    return operands


def _backward(gradient: Callable[..., Tensor]) -> Callable[..., Any]:
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        by_x, *_, by_bias, by_residual, _ = ctx.needs_input_grad
        dx = gradient(dy, *_operands(ctx), *ctx.x) if by_x else None
        db = dr = None
        if by_bias:
            shape, dtype = ctx.bias
            db = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(dtype).view(shape)
        if by_residual:
            shape, dtype = ctx.residual
            dr = dy.to(dtype).reshape(shape)
        # A list of tensors wants a list of gradients.
        nothing = ([None] * count if count > 0 else None for count in ctx.counts)
        return (dx, *nothing, db, dr, None)

    return backward
