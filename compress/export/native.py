"""``quant_method: "compress"``: our own form, for what no other can hold.

``config.json`` has, under ``quantization_config``, a table of every packed weight with its layout, its shape and the
parameter of the transformers model that it is (a part of). The tensors of a weight are named ``NAME.suffix``. Beside
them stands a tensor under the weight's old name, of shape ``[0]`` and no bytes: transformers without ``import
compress`` does not know the method, warns, and would go on with random weights; that tensor has the wrong shape and
stops it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from compress_kernels.layouts import Layout, TensorSpec

from compress.structures.base import CompressedWeight

from .base import Facts, Planned, TensorWriter, load_packed, save_packed, tensor_name

VERSION = 1
# A layout's own ``weight`` (int8 values, say) would be taken for the dense one by a loader that knows no layouts.
RENAMED = {"weight": "weight_values"}


class Native:
    """Any layout, any kind of weight."""

    name: ClassVar[str] = "native"

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """A tensor that holds several weights is packed as a whole or not at all."""
        packed = {weight.view.name for weight in weights}
        shared = {source for weight in weights for source in weight.view.sources}
        for view in facts.views:
            if view.name not in packed and shared.intersection(view.sources):
                source = next(source for source in view.sources if source in shared)
                return f"{view.name} is not compressed but shares the tensor {source} with weights that are"
        return None

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        return weight.layout

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        specs = weight.layout.specs(weight.view.shape)
        packed = {
            tensor_name(weight.view, RENAMED.get(suffix, suffix)): spec for suffix, spec in specs.items()
        }
        return packed | {
            source: TensorSpec((0,), facts.headers[source].dtype) for source in weight.view.sources
        }

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        save_packed(weight, packed, writer, RENAMED)
        return packed

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        return load_packed(weight, writer, RENAMED)

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        table = {
            weight.view.name: {
                "parameter": weight.view.parameter,
                "kind": weight.view.kind,
                "expert": weight.view.expert,
                "shape": list(weight.view.shape),
                "layout": weight.layout.to_json(),
                "sources": list(weight.view.sources),
            }
            for weight in weights
        }
        return {"quant_method": "compress", "version": VERSION, "weights": table}
