"""What comes after a product: bias and residual in fp32, one rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def finish(product: Tensor, bias: Tensor | None, residual: Tensor | None, out: torch.dtype) -> Tensor:
    """Add in fp32 what there is to add, and round once."""
    if bias is None and residual is None:
        return product.to(out)
    total = product.float()
    if bias is not None:
        total = total + bias
    if residual is not None:
        total = total + residual
    return total.to(out)
