"""What a form of checkpoint says: the tensors it stores for a weight, and what ``config.json`` tells a loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from compress_kernels.activations import STORED_DTYPES, ActivationScheme
from compress_kernels.layouts import Layout, TensorSpec
from torch import Tensor

from compress.checkpoint.headers import TensorInfo
from compress.checkpoint.shards import Shard
from compress.checkpoint.source import Source
from compress.models.conversion import Piece
from compress.models.kv_cache import CachedAttention
from compress.models.views import WeightView
from compress.structures.base import CompressedWeight, Structure

KEY_SCALE, VALUE_SCALE = "k_scale", "v_scale"


class Planned(Protocol):
    """A weight and the layout that its structure packs it into."""

    @property
    def view(self) -> WeightView:
        """The weight in the model."""
        ...

    @property
    def layout(self) -> Layout:
        """How it is stored."""
        ...

    @property
    def input_from(self) -> str | None:
        """The weight that holds its input factor; ``None`` where that is none or its own."""
        ...

    @property
    def activations(self) -> ActivationScheme | None:
        """How its inputs are rounded; ``None`` where they are not."""
        ...


@dataclass(frozen=True)
class KVCacheScheme:
    """How keys and values are stored, and by which attention modules."""

    scheme: ActivationScheme
    attention: tuple[CachedAttention, ...]

    def specs(self, dtype: torch.dtype) -> dict[str, TensorSpec]:
        """Name → spec of the scales; ``dtype`` is theirs."""
        by_head = self.scheme.strategy == "attn_head"
        return {
            f"{one.disk}.{suffix}": TensorSpec((one.heads, 1, 1) if by_head else (1,), dtype)
            for one in self.attention
            for suffix in (KEY_SCALE, VALUE_SCALE)
        }


@dataclass(frozen=True)
class Facts:
    """What an exporter has to know of the model besides the weights that are compressed.

    Attributes:
        headers: the tensors of the source.
        linear_modules: names of all its ``nn.Linear`` modules.
        views: every weight that could be compressed, whether it is or not.
        dtype: the dtype that a loader gives the model (``dtype`` in ``config.json``).
        pieces: parameter → where its parts lie on disk.
        uneven: blocks have widths of their own, which ``config.json`` has no setting for.
        config: the text model's configuration, defaults filled in.
        folder: the source's folder.
        kv_cache: how keys and values are stored; None leaves that to the server.
    """

    headers: Mapping[str, TensorInfo]
    linear_modules: tuple[str, ...]
    views: tuple[WeightView, ...]
    dtype: torch.dtype
    pieces: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    uneven: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    kv_cache: KVCacheScheme | None = None


@runtime_checkable
class HasNotes(Protocol):
    """A form that holds a model not in every respect."""

    def notes(self, weights: Sequence[Planned], facts: Facts) -> tuple[str, ...]:
        """Sentences for people on what a loader does otherwise than they would think; empty where there is nothing."""
        ...


class Exporter(Protocol):
    """One form. Keeps nothing between calls."""

    name: ClassVar[str]

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """Why these weights cannot be written in this form, in words, or ``None`` if they can."""
        ...

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """The layout in which the weight is on disk: its own, unless this form decodes it."""
        ...

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """Full name → spec of the tensors on disk that replace the weight's tensors in the source.

        A tensor that several weights share (experts stored as one) is named by each of them.
        """
        ...

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """Write a solved weight; returns it as a loader will find it, which is what the next block has to see."""
        ...

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """Read back what :meth:`save` wrote, to continue an interrupted run."""
        ...

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any] | None:
        """What goes to ``config.json`` under that key; ``None`` for an ordinary checkpoint."""
        ...


@runtime_checkable
class OwnFile(Protocol):
    """What a form has that keeps none of the source's tensors as they are: it writes a file of its own kind."""

    def lay_out(self, weights: Sequence[Planned], facts: Facts) -> tuple[Shard, ...]:
        """The output's weight files, to the byte."""
        ...

    def converted(self, weights: Sequence[Planned], facts: Facts) -> dict[str, tuple[str, ...]]:
        """Output tensor → the source's tensors that it is made of, for those that no weight is compressed in."""
        ...

    def convert(self, tensor: str, source: Source, facts: Facts) -> Tensor:
        """One of :meth:`converted`, from the source."""
        ...


@runtime_checkable
class RestrictsGrids(Protocol):
    """A form whose numbers on disk are fewer than those of an integer grid: other scales, fewer zero points."""

    def restricted(self, structure: Structure) -> Structure:
        """The structure as the form can store it without a change of its values; other structures as they are."""
        ...


@runtime_checkable
class StoresInputs(Protocol):
    """A form that stores what is calibrated of a weight's inputs under other names or as other numbers."""

    def put_inputs(self, weight: Planned, calibrated: Mapping[str, Tensor], writer: TensorWriter) -> None:
        """Write the calibrated tensors, given by the suffixes of their scheme."""
        ...

    def read_inputs(self, weight: Planned, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The calibrated tensors by the suffixes of their scheme; ``read`` takes the name of a tensor on disk."""
        ...


@runtime_checkable
class AddsFiles(Protocol):
    """A form with files of its own beside the weights."""

    def files(self, weights: Sequence[Planned], facts: Facts) -> dict[str, str]:
        """Name → text."""
        ...


@runtime_checkable
class AddsToConfig(Protocol):
    """A form whose loader needs other settings of the model, or looks for them under other names, than transformers."""

    def config_entries(self, config: Mapping[str, Any], quantization: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is added to the source's ``config.json`` beside its quantization."""
        ...


CONFIG_KEYS = ("quantization_config",)
"""Where ``config.json`` tells of the quantization, unless a form has ``config_keys`` of its own."""


def with_quantization(
    config: Mapping[str, Any], exporter: Exporter, quantization: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``config.json`` of an output: that of the source, and what the form says of the quantization."""
    if quantization is None:
        return dict(config)
    keys: tuple[str, ...] = getattr(exporter, "config_keys", CONFIG_KEYS)
    entries = exporter.config_entries(config, quantization) if isinstance(exporter, AddsToConfig) else {}
    return {**config, **entries, **{key: dict(quantization) for key in keys}}


@runtime_checkable
class Decoding(Protocol):
    """A form that can tell its loader to decode the weights while it loads them."""

    def decoding(self) -> Exporter:
        """The same form, decoded by its loader."""
        ...


class TensorWriter(Protocol):
    """What an exporter needs of :class:`compress.checkpoint.writer.Writer`."""

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors by their full names on disk."""
        ...

    def mapped(self, name: str) -> Tensor:
        """A tensor of the output as memory to write into."""
        ...

    def region(self, name: str) -> Tensor:
        """The part of a shared tensor that a weight's values go to."""
        ...

    def read(self, name: str) -> Tensor:
        """A tensor that was written."""
        ...


def input_specs(weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
    """Suffix → spec of the tensors that a static activation scheme stores beside a weight."""
    stored = weight.activations.stored if weight.activations is not None else ()
    return {suffix: TensorSpec((1,), STORED_DTYPES[suffix] or facts.dtype) for suffix in stored}


def put_inputs(
    exporter: Exporter, weight: Planned, calibrated: Mapping[str, Tensor], writer: TensorWriter
) -> None:
    """Write what is calibrated of a weight's inputs, by the suffixes of its scheme."""
    if isinstance(exporter, StoresInputs):
        exporter.put_inputs(weight, calibrated, writer)
    else:
        writer.put({tensor_name(weight.view, suffix): tensor for suffix, tensor in calibrated.items()})


def read_inputs(exporter: Exporter, weight: Planned, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`put_inputs`; ``read`` takes the name of a tensor on disk."""
    if isinstance(exporter, StoresInputs):
        return exporter.read_inputs(weight, read)
    stored = weight.activations.stored if weight.activations is not None else {}
    return {suffix: read(tensor_name(weight.view, suffix)) for suffix in stored}


def rounded_inputs(weights: Sequence[Planned], facts: Facts, form: str) -> str | None:
    """The objection of a form that cannot say that inputs, or keys and values, are rounded; ``None`` where none are."""
    if facts.kv_cache is not None:
        return f"the recipe stores keys and values as {facts.kv_cache.scheme.label}, which {form} does not express"
    for weight in weights:
        if weight.activations is not None:
            return (
                f"{weight.view.name} takes {weight.activations.label} inputs, which {form} does not express"
            )
    return None


def stands_alone(view: WeightView) -> bool:
    """Whether the weight is one tensor on disk by its own name, ``NAME.weight``, as it is multiplied."""
    return view.sources == (f"{view.name}.weight",) and view.kind != "conv1d"


def tensor_name(view: WeightView, suffix: str) -> str:
    """``NAME.suffix``."""
    return f"{view.name}.{suffix}"


def save_packed(
    weight: Planned, packed: CompressedWeight, writer: TensorWriter, rename: Mapping[str, str]
) -> None:
    """Write the tensors of ``packed`` by their suffixes, or what ``rename`` makes of these."""
    writer.put({tensor_name(weight.view, rename.get(s, s)): tensor for s, tensor in packed.tensors.items()})


def load_packed(
    weight: Planned, writer: TensorWriter, rename: Mapping[str, str], layout: Layout | None = None
) -> CompressedWeight:
    """The inverse of :func:`save_packed`; ``layout`` is that on disk where it is not the weight's."""
    stored = layout or weight.layout
    suffixes = stored.specs(weight.view.shape)
    tensors = {s: writer.read(tensor_name(weight.view, rename.get(s, s))) for s in suffixes}
    return CompressedWeight(stored, weight.view.shape, tensors)
