"""Modules for models whose weights are packed: a linear, an embedding, and a linear for what stayed dense.

Needs torch alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native
from .activations import (
    GLOBAL_SUFFIX,
    INT8_PER_TOKEN,
    SCALE_SUFFIX,
    STORED_DTYPES,
    ZERO_SUFFIX,
    ActivationScheme,
    fake_quantize,
    rotate_inputs,
    round_inputs,
)
from .layouts import Layout, PlainInteger
from .ops.dispatch import AUTO
from .packed_module import PackedModule
from .wide_products import bf16_is_slow


class PackedLinear(PackedModule, nn.Linear):  # type: ignore[override]  # ``weight`` is read-only here
    """``y = x Wᵀ + b`` from the tensors of a layout; the bias follows ``.to(dtype)``, packed tensors do not.

    With an activation scheme the input is rounded first, as a server does: symmetric int8 by token with int8 weights is one
    integer product (``int8_matmul``); elsewhere the codes are multiplied and the result is scaled. The scales of a static
    scheme are buffers ``input_scale`` and ``input_zero_point``.

    It is an ``nn.Linear``, so that adapters (LoRA) are put on it as on a dense layer. Gradients pass to ``x`` and the bias;
    the packed weight has none. A change of ``weight`` in place makes it a plain ``nn.Linear``.
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
        activations: ActivationScheme | None = None,
    ) -> None:
        """Hold the tensors of a weight.

        Args:
            layout: how the weight is stored.
            shape: ``[out, in]``.
            tensors: by suffix, held as they are; without them empty ones are made on ``device`` (which may be meta).
            bias: ``[out]``.
            backend: which implementation multiplies.
            device: of the empty tensors.
            activations: how inputs are rounded; ``None`` leaves them as they are.
        """
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.activations = activations
        self.hold(layout, shape, tensors, backend, device)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        if bias is not None:
            self.compute_dtype = bias.dtype
        for suffix in activations.stored if activations is not None else ():
            empty = torch.empty(1, dtype=STORED_DTYPES[suffix] or self.compute_dtype, device=device)
            self._buffers[suffix] = empty if tensors is None else tensors[suffix]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[…, out]`` for inputs ``[…, in]``, in their dtype; inputs are rounded first where the scheme says so."""
        prepared = self._prepared
        if prepared is None:
            prepared = self.prepare()
        scheme = self.activations
        if scheme is None:
            return prepared(x, self.bias)
        if self._multiplies_integers:
            return prepared(rotate_inputs(x, scheme), self.bias)
        scale = self._buffers.get(SCALE_SUFFIX, self._buffers.get(GLOBAL_SUFFIX))
        zero = self._buffers.get(ZERO_SUFFIX)
        if torch.is_grad_enabled() and x.requires_grad:
            # Straight through the rounding.
            passed = x + (fake_quantize(x.detach(), scheme, scale, zero) - x.detach())
            return prepared(rotate_inputs(passed, scheme), self.bias)
        rounded = round_inputs(x, scheme, scale, zero)
        product = prepared(rounded.values, None, None, torch.float32).mul_(rounded.scale)
        if self.bias is not None:
            product = product.add_(self.bias)
        return product.to(x.dtype)

    @property
    def keep_changed(self) -> Callable[[Tensor], None] | None:
        """What takes a changed weight: the layer becomes dense, unless its inputs are rounded or another holds its tensors."""
        return None if self.activations is not None or self._holder else self._become_dense

    def _become_dense(self, weight: Tensor) -> None:
        """Hold ``weight`` ``[out, in]`` as a parameter in the place of the packed tensors, from here on."""
        warnings.warn(
            "the code of a model changes packed weights in place: their layers are dense from here on",
            stacklevel=2,
        )
        for suffix in self.suffixes:
            del self._buffers[suffix]
        self._prepared, self._released = None, ()
        self.__class__ = nn.Linear  # type: ignore[assignment]
        self._parameters["weight"] = nn.Parameter(weight, requires_grad=False)

    @property
    def _multiplies_integers(self) -> bool:
        """Whether the operator rounds the inputs by itself."""
        if not isinstance(self.layout, PlainInteger) or self.activations is None:
            return False
        return self.activations.unrotated == INT8_PER_TOKEN

    @property
    def own_suffixes(self) -> tuple[str, ...]:
        """The buffers that keep their dtype and go to the checkpoint, scales of the inputs among them."""
        return (*self.suffixes, *(self.activations.stored if self.activations is not None else ()))

    def operand_tensors(self) -> tuple[Layout, dict[str, Tensor]]:
        """What is multiplied: the int8 operator rounds its inputs by token; where they are not, bytes become packed words."""
        if isinstance(self.layout, PlainInteger) and not self._multiplies_integers:
            return self.layout.as_packed(self.tensors(), self.shape)
        return super().operand_tensors()

    def extra_repr(self) -> str:
        """Sizes, layout, scheme of the inputs and backend, for ``print``."""
        note = self._prepared.note if self._prepared else "not prepared"
        rounded = f", inputs {self.activations.label}" if self.activations is not None else ""
        return f"in={self.in_features}, out={self.out_features}, {self.layout}{rounded}, {note}"


class PackedEmbedding(PackedModule, nn.Embedding):  # type: ignore[override]
    """Rows of a packed weight ``[entries, width]`` by their ids: only the rows that are asked for are decoded.

    The result ``[…, width]`` has the dtype ``compute_dtype``. The weight has no gradient. :meth:`tie` lets it share the tensors
    of a packed head, or a head share those of the embedding.
    """

    def __init__(
        self,
        layout: Layout,
        shape: tuple[int, int],
        tensors: Mapping[str, Tensor] | None = None,
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
        backend: str = AUTO,
        device: torch.device | str | None = None,
    ) -> None:
        """Hold the tensors of a weight.

        Args:
            layout: how the weight is stored.
            shape: ``[entries, width]``.
            tensors: by suffix, held as they are; without them empty ones are made on ``device`` (which may be meta).
            padding_idx: as ``nn.Embedding`` has it; it matters to gradients alone, and there are none.
            dtype: of the result; that of the scales unless given.
            backend: which implementation decodes.
            device: of the empty tensors.
        """
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = shape
        self.padding_idx, self.max_norm, self.norm_type = padding_idx, None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.hold(layout, shape, tensors, backend, device)
        if dtype is not None:
            self.compute_dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        """Rows ``[…, width]`` for ids int32 or int64 ``[…]``; raises ``IndexError`` for one that is not there (on a CPU)."""
        prepared = self._prepared
        if prepared is None:
            prepared = self.prepare()
        return prepared.rows(input, self.compute_dtype)

    def extra_repr(self) -> str:
        """Sizes, layout and backend, for ``print``."""
        note = self._prepared.note if self._prepared else "not prepared"
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.layout}, {note}"


class DenseLinear(nn.Linear):
    """An ``nn.Linear`` that multiplies a few tokens by the CPU kernel of ``dense_matmul``, twice as fast as torch's product.

    It is what decoding wants of the head of a packed model, whose weight is usually not packed. Everything else (more
    tokens, other dtypes, other devices, gradients) is ``F.linear``. Sums are fp32 in both. Where torch's products of bf16
    are slow, and copy the weight, the kernel takes up to four times as many tokens, :attr:`ROWS` at once.
    """

    ROWS = 8
    """Tokens that the kernel takes at once."""

    most: int = 0
    """Tokens up to which it is taken; 0 where this machine does not have it."""

    @classmethod
    def of(cls, linear: nn.Linear) -> DenseLinear:
        """The same layer: its parameters are shared, not copied, and stay tied to whatever they are tied to."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=False)
        made.weight, made.bias = linear.weight, linear.bias
        if linear.weight.device.type == "cpu" and native.load().vectorised:
            made.most = cls.ROWS * (4 if bf16_is_slow() else 1)
        return made.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[…, out]`` for inputs ``[…, in]``: by the kernel for a few bf16 tokens on a CPU, else by torch."""
        weight = self.weight
        few = 0 < x.numel() <= self.most * self.in_features
        plain = x.dtype == weight.dtype == torch.bfloat16 and x.device.type == weight.device.type == "cpu"
        if few and plain and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
            if x.shape[-1] != self.in_features:
                raise ValueError(f"x has {x.shape[-1]} features where the weight takes {self.in_features}")
            return self._by_the_kernel(x)
        return F.linear(x, weight, self.bias)

    def _by_the_kernel(self, x: Tensor) -> Tensor:
        multiply = torch.ops.compress_kernels.native_dense
        if x.numel() <= self.ROWS * self.in_features:
            product: Tensor = multiply(x, self.weight, self.bias, None, None)
            return product
        parts = x.reshape(-1, self.in_features).split(self.ROWS)
        products = [multiply(part, self.weight, self.bias, None, None) for part in parts]
        return torch.cat(products).view(*x.shape[:-1], self.out_features)
