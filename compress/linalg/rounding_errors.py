"""What nearest rounding costs under several scales and zero points: the search of grids whose values are evenly spaced."""

from __future__ import annotations

import torch
from compress_kernels import native
from torch import Tensor

_CACHED = 1 << 18
"""Values that stay in a processor's cache while all trials pass over them."""


def rounding_errors(values: Tensor, costs: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """``Σ costs · (rounded − values)²`` of every group under every trial, fp32 ``[trials, groups]``.

    Args:
        values: fp32 ``[groups, width]``.
        costs: of squared errors, fp32 ``[rows, width]`` with a number of rows that divides the groups: group g has those of
            row ``g mod rows``.
        scale, zero: fp32 ``[trials, groups]``; the rounded values are ``(code − zero) · scale``.
        top: the highest code; the lowest is 0.
    """
    tensors = tuple(each.contiguous() for each in (values, costs, scale, zero))
    if all(each.device.type == "cpu" for each in tensors) and native.load().loaded:
        errors: Tensor = torch.ops.compress_kernels.native_rounding_errors(*tensors, top)
        return errors
    period = len(costs)
    together = max(1, _CACHED // max(period * values.shape[1], 1)) * period
    parts = zip(values.split(together), scale.split(together, 1), zero.split(together, 1), strict=True)
    return torch.cat([_errors(part, costs, scales, zeros, top) for part, scales, zeros in parts], 1)


def _errors(values: Tensor, costs: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """The same in plain torch, for groups that the cache holds."""
    repeated = costs.repeat(len(values) // len(costs), 1)
    errors = torch.empty_like(scale)
    for trial in range(len(scale)):
        s, z = scale[trial, :, None], zero[trial, :, None]
        codes = (values / s).add_(z).round_().clamp_(0, top)
        errors[trial] = codes.sub_(z).mul_(s).sub_(values).square_().mul_(repeated).sum(-1)
    return errors


def least_trial(errors: Tensor, trials: Tensor) -> Tensor:
    """Of ``trials`` ``[trials, groups]`` the one of least error for each group ``[groups]``, the first of several."""
    return trials.gather(0, errors.argmin(0, keepdim=True))[0]
