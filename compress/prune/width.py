"""Blocks made narrower: FFN neurons and whole attention groups left out, what reads them fitted anew.

Where all blocks keep the same numbers, the result is a smaller model of the same architecture, which loads anywhere. Where
they do not, the shapes are told apart from the settings (:mod:`compress.models.resize`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from compress.calibrate.stream import BlockStream
from compress.calibrate.walk import walk_blocks
from compress.checkpoint.sliced_source import Cut, CutSource, cut_source
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.conversion import Piece
from compress.models.resize import SHAPES
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.prune.eliminate import eliminate
from compress.prune.neuron_budget import counts_by_loss, rooted
from compress.prune.units import Part, groups, neurons

Kept = dict[str, list[list[int]]]
"""Kind of unit → block → the numbers of the units that stay."""


def parts_of(
    skeleton: Skeleton, *, neuron_share: float | None, group_share: float | None
) -> tuple[Part, ...]:
    """What becomes narrower, in the order in which data meets it.

    Raises:
        UserError: an architecture that cannot lose it.
    """
    found = [groups(skeleton, group_share)] if group_share is not None else []
    found += [neurons(skeleton, neuron_share)] if neuron_share is not None else []
    return tuple(part for part in found if part.kept < part.total)


def width_pruned(
    skeleton: Skeleton,
    parts: Sequence[Part],
    tokens: Tensor,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    folder: Path,
    allocate: str = "uniform",
    seed: int = 0,
) -> Source:
    """The skeleton's source with ``parts`` cut, chosen by what each unit does to the outputs of what reads it.

    With ``allocate`` ``"fisher"`` blocks keep different numbers of neurons, and those that the model's loss leans on. Block by
    block, on the inputs that the narrower blocks before send. ``folder`` takes files for each block, one of them with the
    weights that were fitted anew; it has to stay as long as the source is read.

    Raises:
        UserError: activations that are not finite.
    """
    gradients = folder / "gradients"
    if allocate == "fisher":
        gradients.mkdir(exist_ok=True)
        options: dict[str, Any] = {"device": device, "seed": seed, "folder": gradients}
        parts = [
            replace(part, counts=counts_by_loss(skeleton, part, tokens, **options))
            if part.name == "neurons"
            else part
            for part in parts
        ]
    kept: Kept = {part.name: [] for part in parts}
    files: dict[str, Path | None] = {}
    errors: dict[str, float] = {}
    with walk_blocks(skeleton, tokens, device=device, dtype=dtype, spill_dir=folder) as walk:
        for index in walk:
            fitted: dict[str, Tensor] = {}
            for part in parts:
                view = part.readers[index]
                stays, theta, error = _without(skeleton, walk.stream, index, view, part, gradients)
                errors[view.name] = float(f"{error:.2g}")
                kept[part.name].append(stays)
                fitted |= _on_disk(skeleton, view, theta, _columns(part, view, stays))
            path = folder / f"{index}.safetensors"
            save_file(fitted, str(path))
            files |= dict.fromkeys(fitted, path)
    record = {
        "kept": {name: [_packed(own) for own in blocks] for name, blocks in kept.items()},
        "errors": errors,
        **({"uneven": uneven} if (uneven := [part.name for part in parts if part.counts]) else {}),
    }
    return _cut(skeleton, parts, kept, record, files)


def width_pruned_again(skeleton: Skeleton, parts: Sequence[Part], record: Mapping[str, Any]) -> Source:
    """The same cuts as ``record`` has them; of the weights that were fitted anew only the shapes are known.

    Raises:
        UserError: a record of another model.
    """
    kept = {part.name: [_unpacked(own) for own in record["kept"].get(part.name, ())] for part in parts}
    for part in parts:
        uneven = part.name in record.get("uneven", ())
        sound = [own and own[-1] < part.total for own in kept[part.name]]
        numbers = [len(own) for own in kept[part.name]]
        within = sum(numbers) <= part.kept * len(numbers) if uneven else set(numbers) == {part.kept}
        if len(sound) != len(skeleton.blocks) or not all(sound) or not within:
            raise UserError(
                f"the record of {part.name} is none of {skeleton.source.path}: it was written for another model or recipe"
            )
    parts = [
        replace(part, counts={i: len(own) for i, own in enumerate(kept[part.name])})
        if part.name in record.get("uneven", ())
        else part
        for part in parts
    ]
    files: dict[str, Path | None] = {
        _piece(skeleton, view.parameter).disk: None for part in parts for view in part.readers.values()
    }
    return _cut(skeleton, parts, kept, record, files)


def _without(
    skeleton: Skeleton, stream: BlockStream, index: int, view: WeightView, part: Part, gradients: Path
) -> tuple[list[int], Tensor, float]:
    """Which units of a block stay, and the weight that reads them, put in place with zeros for those that go."""
    (seen,) = stream.observe(index, {view.name: frozenset({"gram"})}).values()
    assert seen.gram is not None
    parameter = skeleton.parameter_of(view)
    weight = view.get(parameter.detach()).float()
    units = torch.arange(weight.shape[1], device=weight.device).view(part.total, -1)
    judged = rooted(view, weight, gradients) if part.counts else None
    found = eliminate(weight, seen.gram, units, part.stays(index), judged)
    view.put(parameter, found.theta)
    return found.kept.tolist(), found.theta, found.error


def _cut(
    skeleton: Skeleton,
    parts: Sequence[Part],
    kept: Mapping[str, list[list[int]]],
    record: Mapping[str, Any],
    files: Mapping[str, Path | None],
) -> CutSource:
    cuts: dict[str, tuple[Cut, ...]] = {}
    shapes: dict[str, list[int]] = {}
    state = skeleton.model.state_dict()
    for part in parts:
        for parameter, dims in part.dims.items():
            block = next(i for i, name in enumerate(skeleton.blocks) if parameter.startswith(f"{name}."))
            piece = _piece(skeleton, parameter)
            for dim in dims:
                index = _entries(kept[part.name][block], part.total, state[parameter].shape[dim])
                where = piece.dims[dim]
                assert where is not None
                cuts[piece.disk] = (*cuts.get(piece.disk, ()), Cut(where, index))
                if part.counts:
                    shape = shapes.setdefault(parameter, list(state[parameter].shape))
                    shape[dim] = len(index)
    config: dict[str, Any] = {k: v for part in parts if not part.counts for k, v in part.config.items()}
    if shapes:
        config[SHAPES] = shapes
    return cut_source(skeleton.source, cuts, config=config, record=record, refitted=files)


def _piece(skeleton: Skeleton, parameter: str) -> Piece:
    (piece,) = skeleton.pieces[parameter]
    return piece


def _columns(part: Part, view: WeightView, stays: Sequence[int]) -> Tensor:
    return _entries(stays, part.total, view.shape[1])


def _entries(stays: Sequence[int], total: int, size: int) -> Tensor:
    """The entries of a dimension of ``size`` that belong to the units ``stays`` of ``total``."""
    return torch.arange(size).view(total, -1)[torch.tensor(stays, dtype=torch.int64)].flatten()


def _on_disk(skeleton: Skeleton, view: WeightView, theta: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """Disk name → the weight's kept columns as the disk has them."""
    piece = _piece(skeleton, view.parameter)
    weight = theta.cpu()[:, columns]
    parameter = weight.T if view.transposed else weight
    turned = parameter if piece.dims == (0, 1) else parameter.T
    return {piece.disk: turned.to(skeleton.source.headers[piece.disk].dtype).contiguous()}


def _packed(numbers: Sequence[int]) -> str:
    """Numbers as the bits of a hexadecimal number."""
    return f"{sum(1 << number for number in numbers):x}"


def _unpacked(text: str) -> list[int]:
    bits = int(text, 16)
    return [place for place in range(bits.bit_length()) if bits >> place & 1]
