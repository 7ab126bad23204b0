"""``gguf``: one file that llama.cpp and all that is built on it open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from compress_kernels.layouts import Dense, GGUFBlocks, Layout, TensorSpec
from compress_kernels.layouts.dtypes import dtype_name
from torch import Tensor

from compress.checkpoint.gguf import FILENAME, GGUFTensor, lay_out_gguf
from compress.checkpoint.gguf_tensors import VERSION
from compress.checkpoint.shards import Shard
from compress.checkpoint.source import Source
from compress.formats.base import Facts, Planned, TensorWriter, rounded_inputs
from compress.formats.dense import region
from compress.models.views import WeightView
from compress.structures.base import CompressedWeight

from .carry import block_type_of, carried
from .file_types import file_type_of
from .metadata import model_metadata, rope_tensors
from .placement import Place, Placement, gguf_dtype, place
from .tokenizer import tokenizer_metadata, tokenizer_notes


@dataclass
class GGUF:
    """Block-quantized weights, everything else dense, in one file.

    The placement of the model that was asked about last is kept.
    """

    name: ClassVar[str] = "gguf"
    _latest: tuple[Facts, Placement] | None = None

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """Why GGUF cannot hold these weights, in words; ``None`` if it can."""
        if objection := rounded_inputs(weights, facts, "GGUF"):
            return objection
        placement = self._placement(facts)
        layouts = {weight.view.name: self.stored(weight, facts) for weight in weights}
        for tensor, views in placement.views.items():
            kinds = {layouts.get(view.name) for view in views}
            if len(kinds) > 1:
                return f"{tensor} holds {len(views)} experts of {views[0].name.rpartition('.')[2]}, which need one type"
        return None

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """GGUF blocks where the codes can be carried over; else a dense tensor of the type that the file has for it."""
        kind = block_type_of(weight.layout, weight.view.shape)
        if kind is not None:
            return GGUFBlocks(kind)
        here = self._placement(facts).weights[weight.view.name]
        return Dense(gguf_dtype(here.tensor, weight.view.shape, facts.headers[weight.view.sources[0]].dtype))

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """The weight's tensor in the file, with its shape and dtype; experts share one."""
        here = self._placement(facts).weights[weight.view.name]
        tensor = self._tensor(here, weight.view, self.stored(weight, facts), facts)
        return {here.tensor: tensor.spec}

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """Write a weight's blocks to its place in the file, rows in llama.cpp's order; returns it as a loader will find it."""
        here, layout = self._placement(facts).weights[weight.view.name], self.stored(weight, facts)
        found = carried(packed, layout)
        rows = here.edit.to_gguf(next(iter(found.tensors.values())))
        if here.expert is None:
            writer.put({here.tensor: rows})
        else:
            writer.region(here.tensor)[here.expert].copy_(rows)
        return found

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """Read a weight's blocks back, rows in the source's order."""
        here, layout = self._placement(facts).weights[weight.view.name], self.stored(weight, facts)
        tensor = writer.read(here.tensor)
        rows = tensor if here.expert is None else tensor[here.expert]
        (suffix,) = layout.specs(weight.view.shape)
        return CompressedWeight(layout, weight.view.shape, {suffix: here.edit.from_gguf(rows)})

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        """Where the loader finds each tensor of the model in the file; llama.cpp reads nothing of it."""
        placement = self._placement(facts)
        layouts = {weight.view.name: self.stored(weight, facts) for weight in weights}
        views = {view.name: view for view in facts.views if view.sources}
        table = {
            name: {
                "tensor": here.tensor,
                "expert": here.expert,
                "edit": here.edit.to_json(),
                "shape": list(views[name].shape),
                "layout": (layouts.get(name) or self._dense(here, views[name], facts)).to_json(),
                "dtype": dtype_name(facts.headers[views[name].sources[0]].dtype),
                "sources": list(views[name].sources),
                "transposed": views[name].kind == "conv1d",
            }
            for name, here in placement.weights.items()
        }
        vectors: dict[str, list[dict[str, Any]]] = {}
        for name, vector in placement.vectors.items():
            entry = {"tensor": name, "edit": vector.edit.to_json(), "half": vector.half}
            dtype = dtype_name(facts.headers[vector.disk].dtype)
            vectors.setdefault(vector.disk, []).append({**entry, "dtype": dtype})
        return {
            "quant_method": self.name,
            "version": VERSION,
            "file": FILENAME,
            "weights": table,
            "vectors": vectors,
        }

    def notes(self, weights: Sequence[Planned], facts: Facts) -> tuple[str, ...]:
        """Sentences on texts that llama.cpp tokenizes otherwise."""
        return tokenizer_notes(facts.folder)

    def lay_out(self, weights: Sequence[Planned], facts: Facts) -> tuple[Shard, ...]:
        """The file, to the byte."""
        placement = self._placement(facts)
        layouts = {weight.view.name: self.stored(weight, facts) for weight in weights}
        tensors: dict[str, GGUFTensor] = {}
        order = {disk: index for index, disk in enumerate(facts.headers)}
        for name, views in placement.views.items():
            here = placement.weights[views[0].name]
            layout = layouts.get(views[0].name) or self._dense(here, views[0], facts)
            tensors[name] = self._tensor(here, views[0], layout, facts)
        for name, vector in placement.vectors.items():
            info = facts.headers[vector.disk]
            shape = tuple(vector.cut(torch.empty(info.shape, device="meta")).shape)
            tensors[name] = GGUFTensor(name, shape, gguf_dtype(name, shape, info.dtype))
        first = {
            name: min(order[view.sources[0]] for view in views) for name, views in placement.views.items()
        }
        first |= {name: order[vector.disk] for name, vector in placement.vectors.items()}
        ordered = [tensors[name] for name in sorted(tensors, key=lambda name: (first[name], name))]
        for name, factors in rope_tensors(placement.config).items():
            ordered.append(GGUFTensor(name, tuple(factors.shape), torch.float32))
        numbers = file_type_of([tensor.type for tensor in ordered])
        metadata = model_metadata(facts.folder.name, placement.config, placement.architecture, numbers)
        metadata |= tokenizer_metadata(facts.folder, facts.config)
        return (lay_out_gguf(metadata, ordered),)

    def converted(self, weights: Sequence[Planned], facts: Facts) -> dict[str, tuple[str, ...]]:
        """Tensor of the file → the tensors of the source that it is made of, for those that no weight is compressed in."""
        placement = self._placement(facts)
        packed = {weight.view.name for weight in weights}
        found = {
            name: tuple(dict.fromkeys(source for view in views for source in view.sources))
            for name, views in placement.views.items()
            if views[0].name not in packed
        }
        found |= {name: (vector.disk,) for name, vector in placement.vectors.items()}
        return found | dict.fromkeys(rope_tensors(placement.config), ())

    def convert(self, tensor: str, source: Source, facts: Facts) -> Tensor:
        """A tensor of the file that no weight is compressed in, from the source."""
        placement = self._placement(facts)
        if tensor in (made := rope_tensors(placement.config)):
            return made[tensor]
        if tensor in placement.views:
            views = placement.views[tensor]
            rows = [self._dense_rows(view, placement, source, facts) for view in views]
            stacked = placement.weights[views[0].name].expert is not None
            order = sorted(range(len(views)), key=lambda i: placement.weights[views[i].name].expert or 0)
            return torch.stack([rows[i] for i in order]) if stacked else rows[0]
        vector = placement.vectors[tensor]
        values = vector.cut(source.read(vector.disk))
        dtype = gguf_dtype(tensor, tuple(values.shape), values.dtype)
        return vector.edit.to_gguf(values.to(dtype)).contiguous()

    def _dense_rows(self, view: WeightView, placement: Placement, source: Source, facts: Facts) -> Tensor:
        here = placement.weights[view.name]
        values = region(view, source.read(view.sources[0]), facts)
        return here.edit.to_gguf(values.to(self._dense(here, view, facts).dtype)).contiguous()

    def _dense(self, here: Place, view: WeightView, facts: Facts) -> Dense:
        return Dense(gguf_dtype(here.tensor, view.shape, facts.headers[view.sources[0]].dtype))

    def _tensor(self, here: Place, view: WeightView, layout: Layout, facts: Facts) -> GGUFTensor:
        kind: str | torch.dtype = layout.type if isinstance(layout, GGUFBlocks) else torch.float32
        if isinstance(layout, Dense):
            kind = layout.dtype
        stack = self._placement(facts).views[here.tensor]
        shape = view.shape if here.expert is None else (len(stack), *view.shape)
        return GGUFTensor(here.tensor, shape, kind)

    def _placement(self, facts: Facts) -> Placement:
        if self._latest is None or self._latest[0] is not facts:
            self._latest = (facts, place(facts))
        return self._latest[1]
