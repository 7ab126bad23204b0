"""Signs of a quantization that nothing tells how to undo."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.conversion import Piece

_NARROW = tuple(
    getattr(torch, name)
    for name in (
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    )
    if hasattr(torch, name)
)
_COMPANION = re.compile(
    r"(weight_(scale|scale_inv|scale_2|scales|zero_point|packed|global_scale|g_idx)|scale_inv|qscale_weight|SCB|"
    r"q?zeros|qweight|g_idx|absmax|quant_map|bitmask)$|[._](scales|blocks|scale_inv)$"
)


def refuse_undecoded(
    model: PreTrainedModel, source: Source, pieces: Mapping[str, tuple[Piece, ...]], extra: Iterable[str]
) -> None:
    """Refuse a checkpoint that would be read as dense though its numbers are codes.

    Args:
        model: on meta.
        source: the checkpoint.
        pieces: parameter → where its parts lie.
        extra: stored tensors that no parameter uses.

    Raises:
        UserError: numbers of 4 or 8 bits, integers in the place of a floating-point parameter, or a scale that nobody reads.
    """
    for name, info in source.headers.items():
        if info.dtype in _NARROW:
            raise _refusal(source, f"tensor {name} is {str(info.dtype).removeprefix('torch.')}")
    parameters = model.state_dict()
    for parameter, parts in pieces.items():
        for piece in parts if parameters[parameter].dtype.is_floating_point else ():
            stored = source.headers.get(piece.disk)
            if stored is not None and not stored.dtype.is_floating_point:
                kind = str(stored.dtype).removeprefix("torch.")
                raise _refusal(
                    source, f"tensor {piece.disk} is {kind} where the model has floating-point numbers"
                )
    for name in extra:
        if _COMPANION.search(name):
            raise _refusal(source, f"tensor {name} belongs to a quantized weight, and nothing reads it")


def _refusal(source: Source, what: str) -> UserError:
    return UserError(
        f"{source.path}: {what}, but config.json does not say how to decode it; give the original checkpoint, or one with its "
        "quantization_config."
    )
