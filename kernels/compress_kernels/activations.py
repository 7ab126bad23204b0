"""Activation quantization: the inputs of a linear layer are rounded to integers or floats while the layer runs.

An :class:`ActivationScheme` says how. :func:`round_inputs` gives the codes that a server multiplies, and their scales;
:func:`fake_quantize` gives the values that these stand for. Needs torch alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .activation_scheme import (
    E4M3_MAX,
    GLOBAL_SUFFIX,
    INT8_PER_TOKEN,
    SCALE_SUFFIX,
    STRATEGIES,
    ZERO_SUFFIX,
    ActivationScheme,
    Strategy,
)

__all__ = [
    "GLOBAL_SUFFIX",
    "INT8_PER_TOKEN",
    "SCALE_SUFFIX",
    "STORED_DTYPES",
    "STRATEGIES",
    "ZERO_SUFFIX",
    "ActivationScheme",
    "RoundedInputs",
    "Strategy",
    "centred_codes",
    "e8m0_scale",
    "fake_quantize",
    "hadamard_blocks",
    "rotate_inputs",
    "round_inputs",
    "scale_of_range",
    "zero_point",
]

STORED_DTYPES: dict[str, torch.dtype | None] = {
    SCALE_SUFFIX: None,
    ZERO_SUFFIX: torch.int8,
    GLOBAL_SUFFIX: torch.float32,
}
"""Suffix → dtype of a calibrated tensor; ``None`` for the dtype of the model."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


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


def hadamard_blocks(x: Tensor, order: int) -> Tensor:
    """Every block of ``order`` features times Sylvester's Hadamard matrix over √order, fp32; its own inverse.

    Args:
        x: ``[…, n]``; ``order`` divides n.
        order: a power of two.
    """
    if x.shape[-1] % order:
        raise ValueError(f"blocks of {order} do not divide {x.shape[-1]} input features")
    rows = 1 << (order.bit_length() - 1) // 2
    columns = order // rows
    blocks = x.float().unflatten(-1, (-1, rows, columns)) @ _sylvester(columns, x.device)
    return (_sylvester(rows, x.device) @ blocks).div_(order**0.5).flatten(-3)


def _sylvester(order: int, device: torch.device) -> Tensor:
    """Sylvester's Hadamard matrix, fp32 ``[order, order]``: −1 to the number of bits that row and column share."""
    index = torch.arange(order, device=device)
    shared = index.unsqueeze(1) & index
    odd = torch.zeros_like(shared)
    for bit in range(order.bit_length() - 1):
        odd ^= (shared >> bit) & 1
    return 1.0 - 2.0 * odd


def rotate_inputs(x: Tensor, scheme: ActivationScheme) -> Tensor:
    """``x`` ``[…, in]`` in the basis in which the scheme rounds it, in its dtype: what a weight ``W H`` multiplies."""
    return x if scheme.hadamard is None else hadamard_blocks(x, scheme.hadamard).to(x.dtype)


def round_inputs(
    x: Tensor, scheme: ActivationScheme, scale: Tensor | None = None, zero: Tensor | None = None
) -> RoundedInputs:
    """Round inputs as a server does, in the basis of :func:`rotate_inputs`.

    Args:
        x: ``[…, in]`` bf16, fp16 or fp32.
        scheme: how.
        scale, zero: the calibrated ones of a static scheme, ``[1]``; for ``tensor_group`` the scale is the global one.

    Raises:
        ValueError: a static scheme without a scale, or a group that does not divide the features.
    """
    if scheme.hadamard is not None:
        rotated = round_inputs(hadamard_blocks(x, scheme.hadamard), scheme.unrotated, scale, zero)
        return RoundedInputs(rotated.values.to(x.dtype), rotated.scale)
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
    """The rounded values of ``x`` ``[…, in]`` in its dtype and its own basis; the arguments are those of
    :func:`round_inputs`."""
    if scheme.hadamard is not None:
        rotated = fake_quantize(hadamard_blocks(x, scheme.hadamard), scheme.unrotated, scale, zero)
        return hadamard_blocks(rotated, scheme.hadamard).to(x.dtype)
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
        local = (scale * global_scale.float()).clamp(2.0**-9, E4M3_MAX).to(torch.float8_e4m3fn).float()
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
