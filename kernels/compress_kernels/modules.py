"""Linear layers for models whose weights are packed: one that keeps its weight packed, and one for what stayed dense.

Needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native
from .layouts import Layout, TensorSpec
from .ops.dispatch import AUTO, Prepared
from .ops.table import prepare


class PackedLinear(nn.Module):
    """``y = x Wᵀ + b`` from the tensors of a layout, under the names that they have on disk.

    The buffers are ``weight_packed``, ``weight_scale`` … as :meth:`Layout.specs` lists them, so that ``state_dict``
    and a checkpoint agree. Packed tensors keep their dtype in ``.to(dtype)``, ``.half()`` and the like; the bias
    follows. The weight is made ready for its device at the first forward, or by :meth:`prepare`; a tensor that the
    backend repacks for itself is then let go, and made again when someone asks for it.
    """

    def __init__(
        self,
        layout: Layout,
        shape: tuple[int, int],
        tensors: Mapping[str, Tensor] | None = None,
        bias: Tensor | None = None,
        *,
        backend: str = AUTO,
        device: torch.device | str | None = None,
    ) -> None:
        """``tensors`` and ``bias`` ``[out]`` are held as they are; without ``tensors`` room is made
        (``device`` may be meta).
        """
        super().__init__()
        self.layout, self.backend = layout, backend
        self.out_features, self.in_features = shape
        self.suffixes = tuple(layout.specs(shape))
        for suffix, spec in layout.specs(shape).items():
            room = (
                torch.empty(spec.shape, dtype=spec.dtype, device=device)
                if tensors is None
                else tensors[suffix]
            )
            self.register_buffer(suffix, room)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.compute_dtype = None if bias is None else bias.dtype
        self.stand_in: Tensor | None = None
        self._prepared: Prepared | None = None
        self._let_go: tuple[str, ...] = ()

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[out, in]``, decoded at every reading: for model code that multiplies with it by itself or asks
        for its dtype, which is ``compute_dtype`` where that is set. While ``stand_in`` is set it is that tensor."""
        if self.stand_in is not None:
            return self.stand_in
        dtype = self.compute_dtype or _dtype_of_scales(self.layout.specs(self.shape))
        if any(getattr(self, suffix).is_meta for suffix in self.suffixes):
            return torch.empty(self.shape, dtype=dtype, device="meta")
        return self.dequantize(dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.out_features, self.in_features)

    def tensors(self) -> dict[str, Tensor]:
        """Suffix → the tensor on disk."""
        self._restore()
        return {suffix: getattr(self, suffix) for suffix in self.suffixes}

    def prepare(self) -> Prepared:
        """Check the tensors and make them ready for the device that they are on."""
        if self._prepared is None:
            self._prepared = prepare(self.layout, self.tensors(), self.shape, backend=self.backend)
            self._let_go = self._prepared.backend.repacked(self._prepared.operands)
            for suffix in self._let_go:
                setattr(self, suffix, getattr(self, suffix).new_empty(0))
        return self._prepared

    def _restore(self) -> None:
        """Have the tensors on disk again, and nothing prepared, if some of them were let go."""
        if not self._let_go or self._prepared is None:
            return
        again = self._prepared.backend.restore(self.layout, self._prepared.operands, self.shape)
        for suffix in self._let_go:
            setattr(self, suffix, again[suffix])
        self._let_go, self._prepared = (), None

    def forward(self, x: Tensor) -> Tensor:
        prepared = self._prepared
        if prepared is None:
            prepared = self.prepare()
        return prepared(x, self.bias)

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The dense weight ``[out, in]``."""
        return self.layout.decode(self.tensors(), self.shape, dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PackedLinear:
        kept = {suffix: tensor.dtype for suffix, tensor in self.tensors().items()}

        def same_dtype(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            # Packed tensors are what the disk says; a cast meant for weights would change them.
            packed = any(tensor is getattr(self, suffix) for suffix in kept)
            if packed and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        self._prepared = None
        super()._apply(same_dtype, recurse)
        if self.compute_dtype is not None:
            self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._restore()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._restore()
        self._prepared = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._restore()
        return {**self.__dict__, "_prepared": None}

    def extra_repr(self) -> str:
        note = self._prepared.note if self._prepared else "not prepared"
        return f"in={self.in_features}, out={self.out_features}, {self.layout}, {note}"


def _dtype_of_scales(specs: Mapping[str, TensorSpec]) -> torch.dtype:
    wide = (spec.dtype for spec in specs.values() if spec.dtype.is_floating_point and spec.dtype.itemsize > 1)
    return next(wide, torch.bfloat16)


class DenseLinear(nn.Linear):
    """An ``nn.Linear`` that multiplies a few tokens by the CPU kernel of ``dense_matmul``, twice as fast as torch's product.

    It is what decoding wants of the head of a packed model, whose weight is usually not packed. Everything else (more
    tokens, other dtypes, other devices, gradients) is ``F.linear``. Sums are fp32 in both.
    """

    ROWS = 8
    """Tokens up to which the kernel is taken."""

    fast: bool = False
    """Whether this machine has the kernel."""

    @classmethod
    def of(cls, linear: nn.Linear) -> DenseLinear:
        """The same layer: its parameters are shared, not copied, and stay tied to whatever they are tied to."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=False)
        made.weight, made.bias = linear.weight, linear.bias
        made.fast = linear.weight.device.type == "cpu" and native.load().vectorised
        return made.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        few = self.fast and 0 < x.numel() <= self.ROWS * self.in_features
        plain = x.dtype == weight.dtype == torch.bfloat16 and x.device.type == weight.device.type == "cpu"
        if few and plain and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
            if x.shape[-1] != self.in_features:
                raise ValueError(f"x has {x.shape[-1]} features where the weight takes {self.in_features}")
            product: Tensor = torch.ops.compress_kernels.native_dense(x, weight, self.bias, None, None)
            return product
        return F.linear(x, weight, self.bias)
