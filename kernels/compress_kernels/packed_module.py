"""The tensors of a layout as the buffers of a module: what packed linears and packed embeddings share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .decoded import DecodedWeight
from .layouts import Layout, TensorSpec
from .ops.dispatch import Prepared, Room
from .ops.table import prepare


class PackedModule(nn.Module):
    """A module that holds a weight ``[out, in]`` as the tensors of a layout, under the names that they have on disk.

    The buffers are ``weight_packed``, ``weight_scale`` … as :meth:`Layout.specs` lists them, so that ``state_dict`` and a
    checkpoint agree. Packed tensors keep their dtype in ``.to(dtype)``, ``.half()`` and the like. The weight is prepared for
    its device at the first forward, or by :meth:`prepare`; a tensor that the backend repacks is then released, and made again
    when it is asked for.
    """

    layout: Layout
    backend: str
    suffixes: tuple[str, ...]
    stand_in: Tensor | None = None
    """What ``weight`` is instead, while a loader sets up the model."""
    room: Room | None = None
    """Where weights lie, while nobody else has the tensors, so that a backend may change them in place."""
    compute_dtype: torch.dtype
    """The dtype of ``weight``; ``.to(dtype)`` changes it. At first the bias's, without one that of the scales."""

    def hold(
        self,
        layout: Layout,
        shape: tuple[int, int],
        tensors: Mapping[str, Tensor] | None,
        backend: str,
        device: torch.device | str | None,
    ) -> None:
        """Take the tensors of a weight as they are; without them make empty ones on ``device``."""
        self.layout, self.backend, self._shape = layout, backend, (shape[0], shape[1])
        specs = layout.specs(shape)
        self.suffixes = tuple(specs)
        for suffix, spec in specs.items():
            # Not register_buffer: a layout may call a tensor ``weight``, which is a property here.
            self._buffers[suffix] = (
                torch.empty(spec.shape, dtype=spec.dtype, device=device)
                if tensors is None
                else tensors[suffix]
            )
        self.compute_dtype = _dtype_of_scales(specs)
        self._prepared: Prepared | None = None
        self._released: tuple[str, ...] = ()
        self._holder: list[PackedModule] = []

    def tie(self, holder: PackedModule) -> None:
        """Use the weight that ``holder`` holds in place of one's own: one buffer, prepared once, for a head and an embedding.

        The tensors are then in the ``state_dict`` of ``holder`` alone, and move between devices with it.

        Raises:
            ValueError: the two differ in shape or layout, or ``holder`` is tied itself.
        """
        if holder is self or holder._holder:
            raise ValueError("a packed module can be tied only to one that holds its tensors itself")
        if (holder.layout, holder.shape) != (self.layout, self.shape):
            raise ValueError(
                f"{self.layout} {list(self.shape)} cannot be tied to {holder.layout} {list(holder.shape)}"
            )
        for suffix in self.suffixes:
            del self._buffers[suffix]
        # In a list, so that it does not become a submodule, whose tensors would be saved twice.
        self._holder, self._prepared, self._released = [holder], None, ()

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's shape, ``[out, in]``."""
        return self._shape

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        holder = self._holder[0] if self._holder else self
        return holder._stored(holder.suffixes[0]).device

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[out, in]``, decoded when its values are read. It is no parameter."""
        if self.stand_in is not None:
            return self.stand_in
        if torch.compiler.is_compiling():
            return self.dequantize(self.compute_dtype)
        return DecodedWeight(
            self.shape,
            self.compute_dtype,
            self.device,
            lambda: self.dequantize(self.compute_dtype),
            self.keep_changed,
        )

    @property
    def keep_changed(self) -> Callable[[Tensor], None] | None:
        """What takes the weight ``[out, in]`` after code has changed it in place; ``None`` refuses the change."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Suffix → the tensor on disk."""
        if self._holder:
            return self._holder[0].tensors()
        tensors = {suffix: self._stored(suffix) for suffix in self.suffixes}
        if self._released and self._prepared is not None:
            restored = self._prepared.backend.restore(self.layout, self._prepared.operands, self.shape)
            tensors |= {suffix: restored[suffix] for suffix in self._released}
        return tensors

    def prepare(self) -> Prepared:
        """Check the tensors and make them ready for the device that they are on."""
        if self._holder:
            return self._holder[0].prepare()
        if self._prepared is None:
            layout, tensors = self.operand_tensors()
            prepared = prepare(layout, tensors, self.shape, backend=self.backend)
            if layout is self.layout:
                prepared = prepared.arranged(self.room)
                self._released = prepared.backend.repacked(prepared.operands)
            self._prepared = prepared
            for suffix in self._released:
                self._buffers[suffix] = self._stored(suffix).new_empty(0)
        return self._prepared

    def operand_tensors(self) -> tuple[Layout, dict[str, Tensor]]:
        """The layout and the tensors that are multiplied: those on disk."""
        return self.layout, self.tensors()

    @property
    def own_suffixes(self) -> tuple[str, ...]:
        """The buffers that keep their dtype and go to the checkpoint."""
        return self.suffixes

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The dense weight ``[out, in]``."""
        return self.layout.decode(self.tensors(), self.shape, dtype)

    def reset_parameters(self) -> None:
        """Raise ``TypeError``: there is nothing to draw at random here."""
        raise TypeError("a packed weight is not initialised; load its tensors")

    def _stored(self, suffix: str) -> Tensor:
        tensor = self._buffers[suffix]
        assert tensor is not None
        return tensor

    def _restore(self) -> None:
        """Hold every tensor on disk again, and nothing prepared, if some were released."""
        if self._released:
            self._buffers.update(self.tensors())
            self._released, self._prepared = (), None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PackedModule:
        self._restore()
        packed = [self._stored(suffix) for suffix in self.own_suffixes if suffix in self._buffers]

        def same_dtype(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            # Packed tensors are what the disk says; a cast meant for weights would change them.
            if any(tensor is stored for stored in packed) and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        self._prepared, self.room = None, None
        super()._apply(same_dtype, recurse)
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._restore()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._restore()
        self._prepared, self.room = None, None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._restore()
        return {**self.__dict__, "_prepared": None, "room": None}


def _dtype_of_scales(specs: Mapping[str, TensorSpec]) -> torch.dtype:
    wide = (spec.dtype for spec in specs.values() if spec.dtype.is_floating_point and spec.dtype.itemsize > 1)
    return next(wide, torch.bfloat16)
