"""Choice of an operator's implementation: a backend asked for by name runs or raises, ``auto`` takes the first that can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AUTO = "auto"
COMPUTED = (torch.bfloat16, torch.float16, torch.float32)
"""The dtypes of x."""

Room = Callable[[Tensor], Tensor]
"""Copies a tensor to where weights lie."""


class BackendError(ValueError):
    """A backend that was asked for by name cannot run here; the message says why."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        name: what it is asked for by.
        unsupported_reason: ``(device)``: why it cannot run on ``device``, or ``None``.
        prepare: ``(layout, tensors, shape)``: the operands that ``run`` takes, from the checked tensors on disk.
        run: ``(x, operands, bias, residual, out_dtype)``: the product. It has a backward by ``x``, ``bias`` and ``residual``.
        note: what there is to say about it here, such as which instruction set it uses.
        arrange: ``(operands, room)``: the operands of a module that need not keep the tensors on disk, in the order in which
            they are read fastest; see :meth:`Prepared.arranged`.
        repacked: ``(operands)``: suffixes of the tensors on disk that ``prepare`` or ``arrange`` stored in another form.
        restore: ``(layout, operands, shape)``: those tensors again, so that they need not be kept beside the operands.
        gather: ``(ids, operands, dtype)``: decoded rows, as :mod:`.gather` describes them.
    """

    name: str
    unsupported_reason: Callable[[torch.device], str | None]
    prepare: Callable[..., Any]
    run: Callable[..., Tensor]
    note: Callable[[], str] = lambda: ""
    arrange: Callable[[Any, Room | None], Any] = lambda operands, room: operands
    repacked: Callable[[Any], tuple[str, ...]] = lambda operands: ()
    restore: Callable[..., dict[str, Tensor]] = lambda layout, operands, shape: {}
    gather: Callable[[Tensor, Any, torch.dtype], Tensor] | None = None


@dataclass(frozen=True)
class Prepared:
    """A packed weight ready to multiply: ``prepared(x)`` is ``x Wᵀ``, ``[…, in] → […, out]``.

    ``bias`` ``[out]`` and ``residual`` ``[…, out]`` are added before the result is rounded to ``out_dtype`` (the
    dtype of ``x`` unless given). ``note`` says which backend was taken and, after a fall-back, why.
    """

    operands: Any
    backend: Backend
    note: str
    shape: tuple[int, int]

    def __call__(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """``x Wᵀ + bias + residual`` ``[…, out]`` for ``x`` ``[…, in]``, in ``out_dtype`` or the dtype of ``x``."""
        if x.shape[-1] != self.shape[1]:
            raise ValueError(f"x has {x.shape[-1]} features where the weight takes {self.shape[1]}")
        if x.dtype not in COMPUTED:
            raise ValueError(f"packed products take bf16, fp16 and fp32, not {x.dtype}")
        return self.backend.run(x, self.operands, bias, residual, out_dtype)

    def arranged(self, room: Room | None = None) -> Prepared:
        """The same weight in the order in which the backend reads it fastest, for a module that need not keep the one on disk.

        With a ``room`` nobody else has the operands: they are changed in place, and what else is made is put there.
        """
        return dataclasses.replace(self, operands=self.backend.arrange(self.operands, room))

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows ``[…, in]`` of the weight for ``ids`` ``[…]``, decoded to ``dtype``; see :mod:`.gather` for what it raises."""
        if dtype not in COMPUTED:
            raise ValueError(f"rows are decoded to bf16, fp16 and fp32, not {dtype}")
        if self.backend.gather is None:
            raise ValueError(f"backend {self.backend.name!r} has no gather of rows")
        return self.backend.gather(ids, self.operands, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the prepared form holds in memory."""
        return sum(tensor.untyped_storage().nbytes() for tensor in distinct_storages(self.operands))


def distinct_storages(operands: Any) -> list[Tensor]:
    """The tensors inside an operands object, one for each storage."""
    by_address: dict[int, Tensor] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            by_address[value.untyped_storage().data_ptr()] = value
        elif isinstance(value, Prepared):
            walk(value.operands)
        elif isinstance(value, (tuple, list)):
            for item in value:
                walk(item)
        elif hasattr(value, "__dataclass_fields__"):
            for name in value.__dataclass_fields__:
                walk(getattr(value, name))

    walk(operands)
    return list(by_address.values())


def resolve(
    operator: str,
    backends: Mapping[str, Backend],
    device: torch.device,
    wanted: str = AUTO,
    unread: Mapping[str, str | None] | None = None,
) -> tuple[Backend, str]:
    """The backend of ``operator`` to run on ``device`` and a note that says which and why.

    Args:
        operator: its name, for messages.
        backends: in order of preference.
        device: where the product runs.
        wanted: a backend's name, or ``auto`` for the first that can run.
        unread: backend → why it does not read this weight, where it does not.

    Raises:
        BackendError: ``wanted`` names a backend that is unknown, cannot run on ``device`` or does not read the weight.
    """

    def unable(backend: Backend) -> str | None:
        return backend.unsupported_reason(device) or (unread or {}).get(backend.name)

    if wanted != AUTO:
        if wanted not in backends:
            raise BackendError(f"{operator} has no backend {wanted!r}: choose {', '.join([AUTO, *backends])}")
        chosen = backends[wanted]
        if (reason := unable(chosen)) is not None:
            raise BackendError(f"{operator}: backend {wanted!r} cannot run on {device}: {reason}")
        return chosen, describe(chosen)
    reasons: list[str] = []
    for backend in backends.values():
        reason = unable(backend)
        if reason is None:
            return backend, "; ".join([describe(backend), *reasons])
        reasons.append(f"not {backend.name}: {reason}")
    raise BackendError(f"{operator} cannot run on {device}: {'; '.join(reasons)}")


def describe(backend: Backend) -> str:
    """A backend's name, with what it says of itself in brackets."""
    note = backend.note()
    return f"{backend.name} ({note})" if note else backend.name
