"""What comes after a product: bias and addend in fp32, one rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def finish(product: Tensor, bias: Tensor | None, addend: Tensor | None, out: torch.dtype) -> Tensor:
    """Add in fp32 what there is to add, and round once."""
    if bias is None and addend is None:
        return product.to(out)
    total = product.float()
    if bias is not None:
        total = total + bias
    if addend is not None:
        total = total + addend
    return total.to(out)
