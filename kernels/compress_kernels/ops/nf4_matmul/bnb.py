"""bitsandbytes' own kernels, where it is installed: what a GPU runs."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ...decode import nf4_rows
from ..autograd import product
from ..epilogue import finish
from .operands import NF4Operands


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def unsupported_reason(device: torch.device) -> str | None:
    """Why bitsandbytes cannot multiply on ``device``."""
    if not _installed():
        return "bitsandbytes is not installed"
    return None if device.type in ("cuda", "cpu") else "bitsandbytes is tried on CUDA and CPU devices only"


@product("nf4_bitsandbytes", nf4_rows)
def nf4_bitsandbytes(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    table: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """``bitsandbytes.matmul_4bit`` on the tensors as they are, and what there is to add in fp32."""
    import bitsandbytes as bnb  # noqa: PLC0415 (optional)
    from bitsandbytes.functional import QuantState  # noqa: PLC0415

    shape = (*x.shape[:-1], packed.shape[0])
    if 0 in shape:
        return x.new_empty(shape, dtype=out)
    columns = 2 * packed.shape[1]
    state: Any = QuantState(
        absmax=absmax.reshape(-1),
        shape=torch.Size((packed.shape[0], columns)),
        code=table,
        blocksize=columns // absmax.shape[1],
        quant_type="nf4",
        dtype=x.dtype,
    )
    product = bnb.matmul_4bit(x.contiguous(), packed.view(-1, 1).t(), quant_state=state)
    return finish(product, bias, residual, out)


def run(
    x: Tensor, o: NF4Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by bitsandbytes, then bias and residual; :mod:`compress_kernels.ops.nf4_matmul` says of what."""
    if x.shape[-1] != 2 * o.packed.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} features where the weight takes {2 * o.packed.shape[1]}")
    return nf4_bitsandbytes(x, o.packed, o.absmax, o.table, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: NF4Operands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    width = 2 * o.packed.shape[1]
    return torch.ops.compress_kernels.nf4_bitsandbytes_gather(ids, o.packed, o.absmax, o.table, width, dtype)
