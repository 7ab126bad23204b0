"""Where each tensor of a model goes in a GGUF file: names, stacked experts, orders of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.tensor_edits import Edit
from compress.errors import UserError
from compress.formats.base import Facts
from compress.models.views import WeightView

from .architectures import Architecture
from .derived import with_derived
from .metadata import architecture_of

_EXPERT = re.compile(r"\.experts\.\d+\.")
_SUFFIXED = re.compile(r"_bias\.weight$")
_FLOAT = ("ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ffn_gate_inp_shexp.weight")
"""Matrices that llama.cpp keeps in fp32."""


@dataclass(frozen=True)
class Place:
    """Where a weight ``[out, in]`` lies: in GGUF tensor ``tensor``, of which it is matrix number ``expert`` if that is a
    stack of them, with its rows edited."""

    tensor: str
    expert: int | None
    edit: Edit


@dataclass(frozen=True)
class Vector:
    """Which disk tensor a GGUF tensor is made of: all of it, or with ``half`` every other element of its last dimension."""

    disk: str
    edit: Edit
    half: int | None = None

    def cut(self, values: Tensor) -> Tensor:
        """The part of the disk tensor that goes into the GGUF tensor."""
        return values if self.half is None else values[..., self.half :: 2]


@dataclass(frozen=True)
class Placement:
    """A model in GGUF's names.

    Attributes:
        architecture: the table of its family.
        config: the model's configuration with what it implies.
        weights: every weight of two dimensions by the name of its view.
        vectors: GGUF tensor → the other disk tensor that it is made of.
        views: GGUF tensor → the views that it holds, in their order.
    """

    architecture: Architecture
    config: Mapping[str, Any]
    weights: Mapping[str, Place]
    vectors: Mapping[str, Vector]
    views: Mapping[str, tuple[WeightView, ...]]


def place(facts: Facts) -> Placement:
    """The place of every tensor of the source.

    Raises:
        UserError: an architecture that GGUF does not have, or a tensor that has no place in it.
    """
    config = with_derived(facts.config)
    architecture = architecture_of(config)
    names = _names(architecture, config)
    weights: dict[str, Place] = {}
    views: dict[str, list[WeightView]] = {}
    for view in facts.views:
        if not view.sources:
            continue
        here = _place_view(view, architecture, names, config)
        weights[view.name] = here
        views.setdefault(here.tensor, []).append(view)
    held = {source for view in facts.views for source in view.sources}
    vectors: dict[str, Vector] = {}
    for disk in facts.headers:
        if disk not in held and not _ignored(disk, architecture) and not _beyond(disk, _blocks(config)):
            for name, vector in _place_vector(disk, architecture, names, config):
                if name in vectors or name in views:
                    raise UserError(f"two tensors of the source would both be {name} in GGUF")
                vectors[name] = vector
    _check_stacks(views)
    return Placement(architecture, config, weights, vectors, {name: tuple(of) for name, of in views.items()})


def gguf_dtype(tensor: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a tensor that is not quantized is stored: vectors in fp32, as llama.cpp wants them."""
    if len(shape) < 2 or tensor.endswith((".bias", *_FLOAT)):
        return torch.float32
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32


def _place_view(view: WeightView, architecture: Architecture, names: Any, config: Mapping[str, Any]) -> Place:
    stacked = _EXPERT.search(view.name)
    if view.expert is None and stacked is None:
        disk = f"{view.name}.weight"
        return Place(_name(disk, names), None, _edit(disk, architecture, config))
    number = view.expert if view.expert is not None else int(stacked.group()[9:-1]) if stacked else 0
    disk = _EXPERT.sub(".experts.", f"{view.name}.weight")
    return Place(_name(disk, names), number, Edit())


def _place_vector(
    disk: str, architecture: Architecture, names: Any, config: Mapping[str, Any]
) -> Iterator[tuple[str, Vector]]:
    edit = _edit(disk, architecture, config)
    if architecture.halves is not None and (found := re.match(architecture.halves[0], disk)):
        for half, template in enumerate(architecture.halves[1:]):
            yield _name(found.expand(template), names), Vector(disk, edit, half)
        return
    yield _name(disk, names), Vector(disk, edit)


def _names(architecture: Architecture, config: Mapping[str, Any]) -> Any:
    try:
        import gguf  # noqa: PLC0415 - optional
    except ImportError:
        raise UserError("format gguf needs the package 'gguf': pip install 'compress-llm[gguf]'") from None
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture.name not in known:
        raise UserError(
            f"the installed package 'gguf' does not know the architecture '{architecture.name}': update it"
        )
    return gguf.get_tensor_name_map(known[architecture.name], _blocks(config))


def _blocks(config: Mapping[str, Any]) -> int:
    return next(int(config[key]) for key in ("num_hidden_layers", "n_layer", "num_layers") if config.get(key))


def _beyond(disk: str, blocks: int) -> bool:
    """Whether a tensor belongs to a layer behind the last one, which predicts further tokens and transformers does not run."""
    found = re.match(r"model\.layers\.(\d+)\.", disk)
    return found is not None and int(found.group(1)) >= blocks


def _name(disk: str, names: Any) -> str:
    # A parameter that is no module's weight or bias has the end of its name from its own.
    named = disk if disk.endswith((".weight", ".bias")) else _SUFFIXED.sub(r".bias", f"{disk}.weight")
    found: str | None = names.get_name(named, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise UserError(f"GGUF has no place for the tensor {disk} in this architecture")
    return found


def _edit(disk: str, architecture: Architecture, config: Mapping[str, Any]) -> Edit:
    for row in architecture.rows:
        if re.match(row.pattern, disk):
            return Edit(row.rows, tuple(int(config[key]) for key in row.counts))
    plus = architecture.plus_one is not None and re.match(architecture.plus_one, disk) is not None
    return Edit(add=1.0 if plus else 0.0)


def _ignored(disk: str, architecture: Architecture) -> bool:
    derived = re.search(r"\.rotary_emb\.inv_freq$|\.masked_bias$", disk)
    own = architecture.ignored is not None and re.match(architecture.ignored, disk)
    return bool(derived or own)


def _check_stacks(views: Mapping[str, list[WeightView]]) -> None:
    for name, several in views.items():
        if len({view.shape for view in several}) > 1:
            raise UserError(f"the experts of {name} have several shapes: GGUF stores them as one tensor")
        if len(several) > 1 and len({view.name for view in several}) != len(several):
            raise UserError(f"two tensors of the source would both be {name} in GGUF")
