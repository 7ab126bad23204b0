"""Trial weights: every weight as every candidate makes it, packed on disk, from which any allocation is put together.

One safetensors file holds a block, tensors named ``CANDIDATE/WEIGHT/SUFFIX``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from compress_kernels.layouts import Layout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress.allocate.narrow_trials import widened
from compress.allocate.units import Unit
from compress.checkpoint.output import sync
from compress.structures.base import CompressedWeight

Allocation = Mapping[str, str]
"""Unit → the label of its candidate."""
Losses = dict[str, dict[str, float]]
"""Unit → candidate → loss in nats a token."""

_LOSSES, _REMOVAL, _KEPT = "losses", "removal", "kept"


@dataclass
class TrialWeights:
    """The packed trial weights in ``folder``.

    Attributes:
        folder: where they are.
        units: of the model.
        layouts: weight and candidate → the layout and shape of the packed weight.
    """

    folder: Path
    units: Sequence[Unit]
    layouts: Mapping[tuple[str, str], tuple[Layout, tuple[int, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.layouts = {
            (weight.name, choice.label): (weight.layout, weight.view.shape)
            for unit in self.units
            for choice in unit.every
            for weight in choice.weights
        }

    def path(self, block: int | None) -> Path:
        """The file of a block; None for the weights outside of the blocks."""
        return self.folder / f"trial-{'rest' if block is None else block}.safetensors"

    def has(self, block: int | None) -> bool:
        """Whether a block's weights are there."""
        return self.path(block).is_file()

    def save(
        self,
        block: int | None,
        packed: Mapping[tuple[str, str], CompressedWeight],
        losses: Mapping[str, Mapping[str, float]],
        kept: Mapping[int, Tensor] | None = None,
        removal: float | None = None,
    ) -> None:
        """Write a block's trial weights; the file is whole or not there.

        Args:
            block: its number; None for the weights outside of the blocks.
            packed: by weight and candidate.
            losses: by weight and candidate.
            kept: number of neurons → which they are, int64.
            removal: loss without the block, in nats a token, to second order; None where it is not known.
        """
        tensors = {
            f"{label}/{name}/{suffix}": tensor.detach().cpu().contiguous()
            for (name, label), weight in packed.items()
            for suffix, tensor in weight.tensors.items()
        }
        tensors |= {f"{_KEPT}/{number}": which.cpu() for number, which in (kept or {}).items()}
        partial = self.path(block).with_suffix(".new")
        save_file(tensors, str(partial), {_LOSSES: json.dumps(losses), _REMOVAL: json.dumps(removal)})
        sync(partial)
        partial.rename(self.path(block))

    def losses(self, block: int | None) -> dict[str, dict[str, float]]:
        """Weight → candidate → loss, as they were saved with a block."""
        with safe_open(self.path(block), framework="pt") as file:
            found: dict[str, dict[str, float]] = json.loads(file.metadata()[_LOSSES])
        return found

    def removal(self, block: int) -> float | None:
        """What the model loses without a block, in nats a token, to second order; None where it is not known."""
        with safe_open(self.path(block), framework="pt") as file:
            found: float | None = json.loads(file.metadata()[_REMOVAL])
        return found

    def read(self, name: str, label: str, block: int | None) -> CompressedWeight:
        """One packed weight."""
        layout, shape = self.layouts[name, label]
        with safe_open(self.path(block), framework="pt") as file:
            tensors = {suffix: file.get_tensor(f"{label}/{name}/{suffix}") for suffix in layout.specs(shape)}
        return CompressedWeight(layout, shape, tensors)

    def decoder(self, allocation: Allocation) -> Callable[[str], Tensor | None]:
        """Weight → its dense values fp32 ``[out, in]`` under an allocation; None where it is left as it is."""
        labels = {
            view.name: (label, view, unit.choice(label).neurons)
            for unit in self.units
            if (label := allocation.get(unit.name)) is not None
            for view in unit.views
            if (view.name, label) in self.layouts
        }

        def decode(name: str) -> Tensor | None:
            if name not in labels:
                return None
            label, view, neurons = labels[name]
            dense = self.read(name, label, view.block).dense(torch.float32)
            if neurons is None:
                return dense
            with safe_open(self.path(view.block), framework="pt") as file:
                return widened(dense, view.shape, file.get_tensor(f"{_KEPT}/{neurons}"))

        return decode
