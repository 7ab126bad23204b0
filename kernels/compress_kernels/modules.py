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
from .decoded import DecodedWeight
from .layouts import Layout, TensorSpec
from .ops.dispatch import AUTO, Prepared
from .ops.table import prepare


class PackedLinear(nn.Linear):
    """``y = x Wᵀ + b`` from the tensors of a layout, under the names that they have on disk.

    The buffers are ``weight_packed``, ``weight_scale`` … as :meth:`Layout.specs` lists them, so that ``state_dict``
    and a checkpoint agree. Packed tensors keep their dtype in ``.to(dtype)``, ``.half()`` and the like; the bias
    follows. The weight is prepared for its device at the first forward, or by :meth:`prepare`; a tensor that the
    backend repacks is then released, and made again when it is asked for.

    It is an ``nn.Linear``, so that adapters (LoRA) are put on it as on a dense layer. Gradients pass to ``x`` and the bias;
    the packed weight has none.
    """

    stand_in: Tensor | None = None
    """What ``weight`` is instead, while a loader sets up the model."""
    compute_dtype: torch.dtype
    """The dtype of ``weight``; ``.to(dtype)`` changes it. At first the bias's, without one that of the scales."""

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
        """Hold the tensors of a weight.

        Args:
            layout: how the weight is stored.
            shape: ``[out, in]``.
            tensors: by suffix, held as they are; without them empty ones are made on ``device`` (which may be meta).
            bias: ``[out]``.
            backend: which implementation multiplies.
            device: of the empty tensors.
        """
        nn.Module.__init__(self)
        self.layout, self.backend = layout, backend
        self.out_features, self.in_features = shape
        specs = layout.specs(shape)
        self.suffixes = tuple(specs)
        for suffix, spec in specs.items():
            # Not register_buffer: a layout may call a tensor ``weight``, which is a property here.
            self._buffers[suffix] = (
                torch.empty(spec.shape, dtype=spec.dtype, device=device)
                if tensors is None
                else tensors[suffix]
            )
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.compute_dtype = _dtype_of_scales(specs) if bias is None else bias.dtype
        self._prepared: Prepared | None = None
        self._released: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return (self.out_features, self.in_features)

    @property
    def device(self) -> torch.device:
        return self._stored(self.suffixes[0]).device

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense weight ``[out, in]``, decoded when its values are read. It is no parameter and cannot be changed."""
        if self.stand_in is not None:
            return self.stand_in
        if torch.compiler.is_compiling():
            return self.dequantize(self.compute_dtype)
        return DecodedWeight(
            self.shape, self.compute_dtype, self.device, lambda: self.dequantize(self.compute_dtype)
        )

    def tensors(self) -> dict[str, Tensor]:
        """Suffix → the tensor on disk."""
        tensors = {suffix: self._stored(suffix) for suffix in self.suffixes}
        if self._released and self._prepared is not None:
            restored = self._prepared.backend.restore(self.layout, self._prepared.operands, self.shape)
            tensors |= {suffix: restored[suffix] for suffix in self._released}
        return tensors

    def prepare(self) -> Prepared:
        """Check the tensors and make them ready for the device that they are on."""
        if self._prepared is None:
            self._prepared = prepare(self.layout, self.tensors(), self.shape, backend=self.backend)
            self._released = self._prepared.backend.repacked(self._prepared.operands)
            for suffix in self._released:
                self._buffers[suffix] = self._stored(suffix).new_empty(0)
        return self._prepared

    def _stored(self, suffix: str) -> Tensor:
        tensor = self._buffers[suffix]
        assert tensor is not None
        return tensor

    def _restore(self) -> None:
        """Hold every tensor on disk again, and nothing prepared, if some were released."""
        if self._released:
            self._buffers.update(self.tensors())
            self._released, self._prepared = (), None

    def forward(self, x: Tensor) -> Tensor:
        prepared = self._prepared
        if prepared is None:
            prepared = self.prepare()
        return prepared(x, self.bias)

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The dense weight ``[out, in]``."""
        return self.layout.decode(self.tensors(), self.shape, dtype)

    def reset_parameters(self) -> None:
        """Raise ``TypeError``: there is nothing to draw at random here."""
        raise TypeError("a packed weight is not initialised; load its tensors")

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PackedLinear:
        self._restore()
        packed = {suffix: self._stored(suffix) for suffix in self.suffixes}

        def same_dtype(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            # Packed tensors are what the disk says; a cast meant for weights would change them.
            if any(tensor is stored for stored in packed.values()) and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        self._prepared = None
        super()._apply(same_dtype, recurse)
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
