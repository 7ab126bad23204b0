"""A recorded step as a native program: kernels for what there are kernels for, torch's operators for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .attention import Unsupported
from .record import Call, Recorder, all_on_cpu, needed, same_memory
from .step import PlainStep

Lowering = Callable[[Any, tuple[Any, ...], Tensor], bool]
"""``(program, arguments, result) → whether there is an instruction``, which is then appended."""


class Program:
    """A step of a model that runs again and again on the tensors with which it was recorded.

    Attributes:
        token: int64 ``[1, 1]``, read by each run; position: int64 ``[1]``, where in the cache its key and value go.
        logits: ``[1, 1, vocabulary]``, written by each run.
        kernels, calls: how many instructions are kernels, and how many are torch's operators.
    """

    def __init__(self, step: PlainStep, token: Tensor, position: Tensor, cache: Sequence[Tensor]) -> None:
        """Record ``step``, which writes to ``cache``.

        Raises:
            Unsupported: the step reads values of tensors, or has an operator that cannot be replayed.
            Exception: whatever the model's code raises with such arguments.
        """
        self.token, self.position = token, position
        with Recorder() as recorder:
            self.logits: Tensor = step(token, position, *cache)
        self._code = torch.classes.compress_kernels.Program()
        self.calls = 0
        calls = needed(recorder.calls, self.logits)
        while calls:
            first, *rest = calls
            together = [first, *_alike(first, rest)]
            for call in together:
                self._append(call)
            calls = [call for call in rest if not any(call is each for each in together)]
        self.kernels = int(self._code.size()) - self.calls

    def run(self) -> Tensor:
        """The logits for ``token`` at ``position``: the same tensor at every run."""
        self._code.run()
        return self.logits

    def _append(self, call: Call) -> None:
        if not all_on_cpu(call):
            raise Unsupported(f"{call.operator} is not on the CPU")
        lowering = LOWERINGS.get(call.operator)
        if lowering is None or not lowering(self._code, call.arguments, call.results[0]):
            results = [] if call.writes else list(call.results)
            self._code.call(call.name, call.overload, call.boxed, results)
            self.calls += 1


def _alike(first: Call, rest: Sequence[Call]) -> list[Call]:
    """Products of the same x as ``first`` among what follows, until something writes in place: they become one."""
    found: list[Call] = []
    if first.operator not in _JOINED:
        return found
    for call in rest:
        if call.operator == first.operator and same_memory(call.arguments[0], first.arguments[0]):
            found.append(call)
        elif call.writes and any(same_memory(each, first.arguments[0]) for each in call.results):
            break
    return found


def _packed(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    x, *weight, bias, residual, _ = a
    return _rows(x, residual) and program.packed(x, *weight, bias, y)


def _nf4(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    x, codes, absmax, table, bias, residual, _ = a
    return _rows(x, residual) and program.nf4(x, codes, absmax, table, bias, y)


def _sparse(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    x, *weight, bias, residual, _ = a
    return _rows(x, residual) and program.sparse(x, *weight, bias, y)


def _int8(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    x, weight, scale, bias, residual, _ = a
    return _rows(x, residual) and program.int8(x, weight, scale, bias, y)


def _gguf(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    x, packed, kind, columns, bias, residual, _ = a
    return _rows(x, residual) and program.gguf(x, packed, kind, columns, bias, y)


def _dense(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    x, weight, bias, residual, _ = a
    return _rows(x, residual) and program.dense(x, weight, bias, y)


def _mm(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    return _rows(a[0], None) and program.dense(a[0], a[1].t(), None, y)


def _addmm(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    bias, x, weight, beta, alpha = a
    plain = beta == alpha == 1 and bias.dim() == 1
    return plain and _rows(x, None) and program.dense(x, weight.t(), bias, y)


def _linear(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    return _rows(a[0], None) and program.dense(a[0], a[1], a[2], y)


def _rows(x: Tensor, residual: Tensor | None) -> bool:
    return x.is_contiguous() and residual is None


def _norm(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    return bool(program.norm(*a, y))


def _attention(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    return bool(program.attention(*a, y))


def _binary(kind: str) -> Lowering:
    def lower(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
        left, right, *alpha = a
        if not isinstance(left, Tensor) or any(each != 1 for each in alpha):
            return False
        if isinstance(right, Tensor):
            return bool(program.pointwise(kind, y, left, right, 0.0))
        return bool(program.pointwise(kind, y, left, None, float(right)))

    return lower


def _unary(kind: str) -> Lowering:
    return lambda program, a, y: bool(program.pointwise(kind, y, a[0], None, 0.0))


def _gelu(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    return a[1] == "tanh" and _unary("gelu")(program, a, y)


def _cat(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    pieces, dim = a
    start, done = 0, []
    for piece in pieces:
        if piece.dim() != y.dim():
            return False
        done.append(program.pointwise("copy", y.narrow(dim, start, piece.shape[dim]), piece, None, 0.0))
        start += piece.shape[dim]
    return all(done)


def _index_copy(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    target, dim, index, source = a
    return index.numel() == 1 and bool(program.put(target, dim, index, source))


def _row(program: Any, a: tuple[Any, ...], y: Tensor) -> bool:
    ids, *weight, _, _ = a
    return bool(program.row(ids, *weight, y))


_PACKED, _SPARSE = "compress_kernels.native_packed.default", "compress_kernels.native_sparse.default"
_JOINED = (_PACKED, _SPARSE)
"""Products that are one instruction where they have one x: it is rounded once."""
LOWERINGS: dict[str, Lowering] = {
    _PACKED: _packed,
    "compress_kernels.native_nf4.default": _nf4,
    _SPARSE: _sparse,
    "compress_kernels.native_int8.default": _int8,
    "compress_kernels.native_gguf.default": _gguf,
    "compress_kernels.native_dense.default": _dense,
    "compress_kernels.native_rms_norm.default": _norm,
    "compress_kernels.native_attention.default": _attention,
    "compress_kernels.packed_cpu_gather.default": _row,
    "aten.mm.default": _mm,
    "aten.addmm.default": _addmm,
    "aten.linear.default": _linear,
    "aten.add.Tensor": _binary("add"),
    "aten.sub.Tensor": _binary("sub"),
    "aten.mul.Tensor": _binary("mul"),
    "aten.mul.Scalar": _binary("mul"),
    "aten.neg.default": _unary("neg"),
    "aten.silu.default": _unary("silu"),
    "aten.gelu.default": _gelu,
    "aten.clone.default": _unary("copy"),
    "aten.cat.default": _cat,
    "aten.index_copy_.default": _index_copy,
}
"""Operators that have an instruction of their own."""
