"""bitsandbytes: NF4 and FP4, with scales that may be quantized once more, and INT8 by rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.quantized.overlay import DenseTensor, Reading
from compress.checkpoint.source import Source
from compress.errors import UserError

_STATE = ".quant_state.bitsandbytes__"
_INT8_MAXIMUM = 127.0
_STRIP = 1 << 22


def read_bitsandbytes(source: Source, config: Mapping[str, Any]) -> Reading:
    """Every 4-bit weight and every INT8 weight as ``NAME.weight [out, in]``.

    Raises:
        UserError: a weight whose state is missing or cannot be read.
    """
    tensors: dict[str, DenseTensor] = {}
    dropped: set[str] = set()
    kinds: set[str] = set()
    for tensor in source.headers:
        stem, _, kind = tensor.partition(_STATE)
        if kind:
            tensors[stem] = _four_bits(source, stem, tensor)
            kinds.add(kind.upper())
        elif tensor.endswith(".SCB"):
            name = f"{tensor.removesuffix('.SCB')}.weight"
            tensors[name] = _int8(source, name, tensor)
            kinds.add("INT8")
        elif tensor.endswith(".weight_format"):
            dropped.add(tensor)
    return Reading(
        f"bitsandbytes {' and '.join(sorted(kinds)) or 'of no weight'}", tensors, frozenset(dropped)
    )


def _int8(source: Source, name: str, scale: str) -> DenseTensor:
    info = source.headers.get(name)
    if (
        info is None
        or info.dtype != torch.int8
        or len(info.shape) != 2
        or source.headers[scale].shape != info.shape[:1]
    ):
        raise UserError(f"{source.path}: {scale} belongs to no INT8 weight {name} that it fits.")
    laid_out = f"{name.removesuffix('.weight')}.weight_format"
    if laid_out in source.headers and bool(source.read(laid_out).any()):
        raise UserError(
            f"{source.path}: {name} is INT8 of bitsandbytes in a layout of tiles, which is not read here."
        )

    def decode(dtype: torch.dtype) -> Tensor:
        rows = source.read(scale).to(torch.float32) / _INT8_MAXIMUM
        return (source.read(name) * rows.unsqueeze(1)).to(dtype)

    return DenseTensor(info.shape, (name, scale), decode)


def _four_bits(source: Source, name: str, state: str) -> DenseTensor:
    try:
        told = json.loads(bytes(source.read(state).tolist()))
        shape, block = tuple(int(size) for size in told["shape"]), int(told["blocksize"])
        nested = int(told["nested_blocksize"]) if "nested_offset" in told else 0
        offset = float(told.get("nested_offset", 0.0))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source.path}: the state of {name} cannot be read ({error}).") from None
    suffixes = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if nested else [])]
    parts = [name, *(f"{name}.{suffix}" for suffix in suffixes)]
    if missing := [part for part in parts if part not in source.headers]:
        raise UserError(f"{source.path}: {name} is of bitsandbytes, but there is no {missing[0]}.")
    numel = torch.Size(shape).numel()
    if source.headers[name].nbytes * 2 < numel or source.headers[parts[1]].numel != -(-numel // block):
        raise UserError(f"{source.path}: the packed bytes of {name} are too few for its shape {list(shape)}.")

    def decode(dtype: torch.dtype) -> Tensor:
        absmax = source.read(parts[1])
        if nested:
            outer = source.read(parts[3]).to(torch.float32).repeat_interleave(nested)[: absmax.numel()]
            absmax = source.read(parts[4])[absmax.to(torch.int32)] * outer + offset
        table = source.read(parts[2]).to(torch.float32)
        octets = source.read(name).reshape(-1).view(torch.uint8)
        result = torch.empty(numel, dtype=dtype)
        step = max(1, _STRIP // block) * block
        for first in range(0, numel, step):
            part = octets[first // 2 : (first + step + 1) // 2]
            values = table[torch.stack((part >> 4, part & 15), 1).flatten().to(torch.int32)][: numel - first]
            scales = absmax[first // block : -(-(first + values.numel()) // block)].to(torch.float32)
            result[first : first + values.numel()] = (
                values * scales.repeat_interleave(block)[: values.numel()]
            )
        return result.view(shape)

    return DenseTensor(shape, (*parts, state), decode)
