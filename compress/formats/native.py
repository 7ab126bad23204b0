"""``quant_method: "compress"``: our own form, for what no other can hold.

``config.json`` has, under ``quantization_config``, a table of every packed weight with its layout, its shape and the
parameter of the transformers model that it is (a part of). The tensors of a weight are named ``NAME.suffix``. Beside
them stands a tensor under the weight's old name, of shape ``[0]`` and no bytes: transformers without ``import
compress`` does not know the method, warns, and would go on with random weights; that tensor has the wrong shape and
stops it.

How the inputs of a weight are rounded stands under ``activations``. Weights that share an input factor name in
``input_from`` the one under whose name it is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from compress_kernels.activations import INT8_PER_TOKEN, ActivationScheme
from compress_kernels.layouts import Layout, PlainInteger, TensorSpec, layout_from_json

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.packed_weight import PackedWeight
from compress.structures.base import CompressedWeight

from .base import Facts, Planned, TensorWriter, input_specs

VERSION = 1
# A layout's own ``weight`` (int8 values, say) would be taken for the dense one by a loader that knows no layouts.
RENAMED = {"weight": "weight_values"}
RIGHT = "right_"


def disk_names(name: str, suffixes: Iterable[str], input_from: str | None) -> dict[str, str]:
    """Suffix → tensor on disk of a weight's packed tensors; those of a shared right factor lie with ``input_from``."""
    return {
        suffix: f"{input_from if input_from and suffix.startswith(RIGHT) else name}.{RENAMED.get(suffix, suffix)}"
        for suffix in suffixes
    }


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
        """The weight's own layout: the codes are stored as they are."""
        return weight.layout

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """Full name → shape and dtype of the weight's tensors on disk, those of its inputs among them."""
        specs = weight.layout.specs(weight.view.shape)
        names = disk_names(weight.view.name, specs, weight.input_from)
        packed = {names[suffix]: spec for suffix, spec in specs.items()}
        inputs = {f"{weight.view.name}.{suffix}": spec for suffix, spec in input_specs(weight, facts).items()}
        return (
            packed
            | inputs
            | {source: TensorSpec((0,), facts.headers[source].dtype) for source in weight.view.sources}
        )

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """Write the packed tensors of a weight, without those that another weight holds; returns it as it was."""
        names = disk_names(weight.view.name, packed.tensors, weight.input_from)
        own = f"{weight.view.name}."
        writer.put({names[s]: tensor for s, tensor in packed.tensors.items() if names[s].startswith(own)})
        return packed

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """Read a packed weight back, as :meth:`save` wrote it."""
        shape = weight.view.shape
        names = disk_names(weight.view.name, weight.layout.specs(shape), weight.input_from)
        return CompressedWeight(weight.layout, shape, {s: writer.read(name) for s, name in names.items()})

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        """The table by which loaders know every weight: parameter, kind, layout and shape."""
        table = {
            weight.view.name: {
                "parameter": weight.view.parameter,
                "kind": weight.view.kind,
                "expert": weight.view.expert,
                "shape": list(weight.view.shape),
                "layout": weight.layout.to_json(),
                "sources": list(weight.view.sources),
                **({} if weight.input_from is None else {"input_from": weight.input_from}),
                **_activations_json(weight),
            }
            for weight in weights
        }
        cache = {} if facts.kv_cache is None else {"kv_cache": facts.kv_cache.scheme.to_json()}
        return {"quant_method": "compress", "version": VERSION, "weights": table, **cache}


def read_native(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    """Name → weight of every one that a native checkpoint holds packed (``docs/native-form.md``).

    Args:
        source: the checkpoint.
        config: its ``quantization_config``.

    Raises:
        UserError: it is of another version, or an entry of the configuration is damaged.
    """
    if config.get("version") != VERSION:
        raise UserError(
            f"{source.path} is of native version {config.get('version')}; this program reads {VERSION}"
        )
    result = {}
    for name, entry in config["weights"].items():
        try:
            layout = layout_from_json(entry["layout"])
            shape = (int(entry["shape"][0]), int(entry["shape"][1]))
            suffixes = layout.specs(shape)
            activations = _activations(layout, entry)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{source.path / 'config.json'}: the entry of {name} cannot be read: {error}"
            ) from error
        names = disk_names(name, suffixes, entry.get("input_from"))
        names |= {suffix: f"{name}.{suffix}" for suffix in (activations.stored if activations else ())}
        result[name] = PackedWeight(layout, shape, names, activations)
    return result


def _activations_json(weight: Planned) -> dict[str, Any]:
    return {} if weight.activations is None else {"activations": weight.activations.to_json()}


def _activations(layout: Layout, entry: Mapping[str, Any]) -> ActivationScheme | None:
    if (data := entry.get("activations")) is not None:
        return ActivationScheme.from_json(data)
    # Earlier versions wrote plain integers for int8 inputs alone, and did not say so.
    return INT8_PER_TOKEN if isinstance(layout, PlainInteger) else None
