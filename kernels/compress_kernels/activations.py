"""Activation quantization: the inputs of a linear layer are rounded to integers or floats while the layer runs.

An :class:`ActivationScheme` says how. :func:`round_inputs` gives the codes that a server multiplies, and their scales;
:func:`fake_quantize` gives the values that these stand for. Needs torch alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Strategy = Literal["tensor", "token", "group", "tensor_group", "attn_head"]
STRATEGIES: tuple[Strategy, ...] = ("tensor", "token", "group", "tensor_group", "attn_head")
SCALE_SUFFIX, ZERO_SUFFIX, GLOBAL_SUFFIX = "input_scale", "input_zero_point", "input_global_scale"

_E4M3_MAX, _E2M1_MAX = 448.0, 6.0
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class ActivationScheme:
    """Activation scheme: how the inputs of a layer are rounded, in the terms of compressed-tensors.

    Attributes:
        bits: of a value: 2 to 8 for integers, 8 (E4M3) or 4 (E2M1) for floats.
        type: ``"int"`` or ``"float"``.
        symmetric: the range is centred on zero; otherwise integers have a zero point.
        strategy: what shares a scale: the whole ``"tensor"``, one ``"token"``, a ``"group"`` of ``group_size`` features of a
            token, ``"tensor_group"`` (NVFP4: groups whose E4M3 scales are relative to a static scale of the tensor), or
            ``"attn_head"``, a head of a key-value cache.
        group_size: features in a group; ``None`` without groups.
        dynamic: scales are computed from the inputs while the layer runs; otherwise they are calibrated and stored. Those of
            ``"tensor_group"`` are dynamic within a stored global scale.
        scale_type: how dynamic scales of groups are stored: ``None`` (as computed, fp32) or ``"e8m0"`` (powers of two, MX).

    Raises:
        ValueError: a combination that no server computes.
    """

    bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Strategy = "token"
    group_size: int | None = None
    dynamic: bool = True
    scale_type: Literal["e8m0"] | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"there is no strategy {self.strategy!r}: known are {', '.join(STRATEGIES)}")
        if self.type == "int" and not 2 <= self.bits <= 8:
            raise ValueError(f"integer activations have 2 to 8 bits, not {self.bits}")
        if self.type == "float" and self.bits not in (4, 8):
            raise ValueError(f"float activations have 8 bits (E4M3) or 4 bits (E2M1), not {self.bits}")
        if self.type == "float" and not self.symmetric:
            raise ValueError("float activations are symmetric: they have no zero point")
        if self.grouped != (self.group_size is not None):
            raise ValueError(
                "'group_size' goes with the strategies 'group' and 'tensor_group', which need it"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"a group has at least one feature, not {self.group_size}")
        if not self.dynamic and self.strategy in ("token", "group"):
            raise ValueError(
                f"strategy '{self.strategy}' is dynamic: static scales go with strategy 'tensor'"
            )
        if self.dynamic and self.strategy == "attn_head":
            raise ValueError("strategy 'attn_head' has static scales")
        if self.strategy == "tensor_group" and (self.bits, self.type, self.group_size) != (4, "float", 16):
            raise ValueError("strategy 'tensor_group' is NVFP4: 4-bit floats in groups of 16")
        if self.scale_type is not None and (self.strategy, self.group_size, self.type) != (
            "group",
            32,
            "float",
        ):
            raise ValueError("scales of type e8m0 go with floats in groups of 32 (MXFP4, MXFP8)")

    @property
    def grouped(self) -> bool:
        """Whether a token has several scales."""
        return self.strategy in ("group", "tensor_group")

    @property
    def top(self) -> float:
        """The largest magnitude of a code: 127 for 8-bit integers, 448 for E4M3, 6 for E2M1."""
        if self.type == "int":
            return float((1 << (self.bits - 1)) - 1)
        return _E4M3_MAX if self.bits == 8 else _E2M1_MAX

    @property
    def stored(self) -> dict[str, torch.dtype | None]:
        """Suffix → dtype of the calibrated tensors, each of shape ``[1]``; ``None`` for the dtype of the model."""
        if self.strategy == "tensor_group":
            return {GLOBAL_SUFFIX: torch.float32}
        if self.dynamic:
            return {}
        return {SCALE_SUFFIX: None} | ({} if self.symmetric else {ZERO_SUFFIX: torch.int8})

    @property
    def label(self) -> str:
        """The scheme in a few words: ``int8 per token``."""
        kind = f"int{self.bits}" if self.type == "int" else {8: "fp8", 4: "fp4"}[self.bits]
        if self.scale_type == "e8m0":
            return f"mx{kind} per group of 32"
        if self.strategy == "tensor_group":
            return "nvfp4 per group of 16"
        where = f"group of {self.group_size}" if self.grouped else self.strategy.removeprefix("attn_")
        notes = ("" if self.symmetric else ", asymmetric") + ("" if self.dynamic else ", static")
        return f"{kind} per {where}{notes}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ActivationScheme:
        """The inverse of :meth:`to_json`."""
        return cls(**data)


INT8_PER_TOKEN = ActivationScheme()
"""What the ``int8_matmul`` operator does by itself."""


@dataclass(frozen=True)
class RoundedInputs:
    """Rounded inputs: ``values · scale`` is what the server's codes stand for.

    Attributes:
        values: centred codes ``[…, in]`` in the dtype of the inputs, which holds them exactly; with scales by group these are
            multiplied in already.
        scale: fp32, ``[…, 1]`` or ``[1]``.
    """

    values: Tensor
    scale: Tensor


def scale_of_range(scheme: ActivationScheme, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The scale fp32 and the zero point that span ``[low, high]``, zero included; of the shape of both.

    Raises:
        ValueError: a range that is not finite.
    """
    low, high = low.float().clamp_max(0), high.float().clamp_min(0)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise ValueError("the range of its inputs is not finite")
    if scheme.symmetric:
        scale = torch.maximum(-low, high) / scheme.top
        return torch.where(scale > 0, scale, 1 / scheme.top), torch.zeros_like(scale)
    levels = float((1 << scheme.bits) - 1)
    scale = (high - low) / levels
    scale = torch.where(scale > 0, scale, 1 / levels)
    return scale, zero_point(scheme, low, scale)


def zero_point(scheme: ActivationScheme, low: Tensor, scale: Tensor) -> Tensor:
    """The code, −2^(b−1) … 2^(b−1)−1, that stands for zero where ``low`` is the lowest value."""
    bottom = -float(1 << (scheme.bits - 1))
    return torch.round(bottom - low / scale).clamp_(bottom, -bottom - 1)


def centred_codes(x: Tensor, scheme: ActivationScheme, scale: Tensor, zero: Tensor | None) -> Tensor:
    """``round(x / scale)`` within the scheme's codes, fp32, less the zero point; ``scale`` and ``zero`` broadcast."""
    scaled = x.float() / scale
    if scheme.type == "int":
        bottom = -scheme.top - 1
        if zero is None or scheme.symmetric:
            return scaled.round_().clamp_(bottom, scheme.top)
        return (scaled.round_() + zero.float()).clamp_(bottom, scheme.top) - zero.float()
    clipped = scaled.clamp_(-scheme.top, scheme.top)
    return clipped.to(torch.float8_e4m3fn).float() if scheme.bits == 8 else _nearest_e2m1(clipped)


def round_inputs(
    x: Tensor, scheme: ActivationScheme, scale: Tensor | None = None, zero: Tensor | None = None
) -> RoundedInputs:
    """Round inputs as a server does.

    Args:
        x: ``[…, in]`` bf16, fp16 or fp32.
        scheme: how.
        scale, zero: the calibrated ones of a static scheme, ``[1]``; for ``tensor_group`` the scale is the global one.

    Raises:
        ValueError: a static scheme without a scale, or a group that does not divide the features.
    """
    if scheme.grouped:
        return RoundedInputs(_round_groups(x, scheme, scale).to(x.dtype), torch.ones(1, device=x.device))
    if not scheme.dynamic:
        if scale is None:
            raise ValueError("static activations need a calibrated scale")
        used, offset = scale.float(), zero
    elif not x.numel():
        return RoundedInputs(x, torch.ones(1, device=x.device))
    else:
        low, high = _extremes(x, per_token=scheme.strategy == "token")
        used, offset = _dynamic_scale(scheme, low, high)
    return RoundedInputs(centred_codes(x, scheme, used, offset).to(x.dtype), used)


def fake_quantize(
    x: Tensor, scheme: ActivationScheme, scale: Tensor | None = None, zero: Tensor | None = None
) -> Tensor:
    """The rounded values of ``x`` ``[…, in]`` in its dtype; the arguments are those of :func:`round_inputs`."""
    rounded = round_inputs(x, scheme, scale, zero)
    return (rounded.values.float() * rounded.scale).to(x.dtype)


def _extremes(x: Tensor, *, per_token: bool) -> tuple[Tensor, Tensor]:
    if per_token:
        return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    low, high = x.aminmax()
    return low.view(1), high.view(1)


def _dynamic_scale(scheme: ActivationScheme, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`scale_of_range`; what is not finite passes through, and shows in the output."""
    low, high = low.float().clamp_max(0), high.float().clamp_min(0)
    largest = torch.maximum(-low, high)
    if scheme.symmetric:
        return torch.where(largest == 0, 1.0, largest) / scheme.top, torch.zeros_like(largest)
    scale = torch.where(largest == 0, 1.0, high - low) / float((1 << scheme.bits) - 1)
    return scale, zero_point(scheme, low, scale)


def _round_groups(x: Tensor, scheme: ActivationScheme, global_scale: Tensor | None) -> Tensor:
    """Values ``[…, in]`` fp32 after rounding by groups of features."""
    size = scheme.group_size
    assert size is not None
    if x.shape[-1] % size:
        raise ValueError(f"group size {size} does not divide {x.shape[-1]} input features")
    grouped = x.float().unflatten(-1, (-1, size))
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale, zero = _dynamic_scale(scheme, low, high)
    if scheme.scale_type == "e8m0":
        scale = e8m0_scale(torch.maximum(-low, high), scheme)
    if scheme.strategy == "tensor_group":
        if global_scale is None:
            raise ValueError("NVFP4 activations need a calibrated global scale")
        local = (scale * global_scale.float()).clamp(2.0**-9, _E4M3_MAX).to(torch.float8_e4m3fn).float()
        scale = local / global_scale.float()
    return (centred_codes(grouped, scheme, scale, zero) * scale).flatten(-2)


def e8m0_scale(largest: Tensor, scheme: ActivationScheme) -> Tensor:
    """The power of two of an MX group (OCP Microscaling 1.0, section 6.3), fp32.

    ``2^(⌊log2 m⌋ − e)``, where e is the exponent of the largest code (2 for E2M1, 8 for E4M3) and m the largest magnitude,
    rounded to the mantissa of E2M1 as compressed-tensors does: a group's maximum of 7 stands at 8.
    """
    exponent = 2 if scheme.bits == 4 else 8
    bits = largest.float().contiguous().view(torch.int32) + (1 << (23 - 1 - 1))
    power = (bits >> 23).clamp(1, 254) - 127 - exponent
    return torch.exp2(power.clamp(-127, 127).float())


def _nearest_e2m1(x: Tensor) -> Tensor:
    """The nearest value of E2M1 of numbers within ±6, ties to the even code."""
    table = torch.tensor(_E2M1, device=x.device)
    middles = (table[1:] + table[:-1]) / 2
    size = x.abs()
    below = torch.bucketize(size, middles)
    # A tie goes to the code whose last bit is zero: bucketize leaves it below, which is right for even codes alone.
    tie = (size == middles[below.clamp_max(len(middles) - 1)]) & (below % 2 == 1)
    return table[below + tie.to(below.dtype)].copysign(x)
