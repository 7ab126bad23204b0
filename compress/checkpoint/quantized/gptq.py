"""GPTQ as AutoGPTQ, GPTQModel and AutoRound store it: ``qweight``, ``qzeros``, ``scales`` and ``g_idx``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compress_kernels.layouts.bits import unpack
from compress_kernels.layouts.gptq import zero_points
from torch import Tensor

from compress.checkpoint.quantized.overlay import DenseTensor, Reading
from compress.checkpoint.source import Source
from compress.errors import UserError

_WORD = 32
_FORMATS = ("gptq", "gptq_v2")


def read_gptq(source: Source, config: Mapping[str, Any]) -> Reading:
    """Every ``NAME.qweight`` as ``NAME.weight [out, in]``.

    The codes of an output lie along the rows of ``qweight [in·bits/32, out]``; ``qzeros [groups, out·bits/32]`` hold the
    zero points, less one in the first version of the format.

    Raises:
        UserError: another layout of the same name, or shapes that do not fit.
    """
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if layout not in _FORMATS:
        raise UserError(
            f"{source.path} is GPTQ in the layout '{layout}', which is not read here: {' and '.join(_FORMATS)} are."
        )
    tensors, dropped = {}, set()
    for tensor in source.headers:
        if not tensor.endswith(".qweight"):
            continue
        name = tensor.removesuffix(".qweight")
        tensors[f"{name}.weight"] = _linear(source, name, config, less_one=layout == "gptq")
        # Written for every layer by some programs, all zeros where the layer has none.
        dropped |= {f"{name}.{suffix}" for suffix in ("g_idx",)} & source.headers.keys()
    group = config.get("group_size", -1)
    groups = f"groups of {group}" if isinstance(group, int) and group > 0 else "one group per row"
    return Reading(f"GPTQ, {config.get('bits', 'several')} bits, {groups}", tensors, frozenset(dropped))


def _linear(source: Source, name: str, config: Mapping[str, Any], *, less_one: bool) -> DenseTensor:
    parts = [f"{name}.{suffix}" for suffix in ("qweight", "scales", "qzeros")]
    if missing := [part for part in parts if part not in source.headers]:
        raise UserError(f"{source.path}: {name} is of GPTQ, but there is no {missing[0]}.")
    infos = [source.headers[part] for part in parts]
    if any(len(info.shape) != 2 for info in infos) or any(infos[i].dtype != torch.int32 for i in (0, 2)):
        raise UserError(f"{source.path}: the tensors of {name} are not those of GPTQ.")
    (words, out), (groups, _), zeros = (info.shape for info in infos)
    g_idx = f"{name}.g_idx" if f"{name}.g_idx" in source.headers else None
    columns, bits = columns_and_bits(source, name, words, config)
    fits = infos[1].shape[1] == out and zeros == (groups, -(-out * bits // _WORD))
    if not fits or (g_idx is None and columns % groups):
        raise UserError(
            f"{source.path}: the shapes of {name}'s qweight, scales and qzeros do not fit each other."
        )

    def decode(dtype: torch.dtype) -> Tensor:
        codes = unpack(source.read(parts[0]).T.contiguous(), bits, columns)
        stored = source.read(parts[2])
        zero = zero_points(stored, bits, out, less_one=less_one).to(torch.float32)
        scale = source.read(parts[1]).to(torch.float32)
        group = torch.arange(columns) // (columns // groups) if g_idx is None else source.read(g_idx).long()
        result = torch.empty(out, columns, dtype=dtype)
        for first in range(0, out, 1024):
            rows = slice(first, first + 1024)
            result[rows] = (codes[rows] - zero.T[rows][:, group]) * scale.T[rows][:, group]
        return result

    return DenseTensor((out, columns), (*parts, *([g_idx] if g_idx else [])), decode)


def columns_and_bits(source: Source, name: str, words: int, config: Mapping[str, Any]) -> tuple[int, int]:
    """Input features and bits of a layer whose ``qweight`` has ``words`` rows.

    Some layers may have other bits than the rest, which the length of their ``g_idx`` tells.

    Raises:
        UserError: bits that are not read here.
    """
    g_idx = source.headers.get(f"{name}.g_idx")
    if g_idx is not None:
        columns = g_idx.numel
        bits, rest = divmod(words * _WORD, max(columns, 1))
        if rest == 0 and bits in (2, 3, 4, 8):
            return columns, bits
    bits = config.get("bits", 0)
    if bits in (2, 3, 4, 8) and words * _WORD % bits == 0:
        return words * _WORD // bits, bits
    raise UserError(
        f"{source.path}: {name} is of GPTQ in {bits} bits, which is not read here: 2, 3, 4 and 8 are."
    )
