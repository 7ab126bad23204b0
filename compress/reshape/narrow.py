"""Blocks made narrower: FFN neurons and whole attention groups left out, what reads them fitted anew.

All blocks keep the same numbers, so that the result is a smaller model of the same architecture, which loads anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from compress.calibrate.stream import BlockStream
from compress.checkpoint.cut import Cut, CutSource, cut_source
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.conversion import Piece
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.reshape.eliminate import eliminate
from compress.reshape.widths import Part, groups, neurons

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


def narrowed(
    skeleton: Skeleton,
    parts: Sequence[Part],
    tokens: Tensor,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    folder: Path,
) -> Source:
    """The skeleton's source with ``parts`` cut, chosen by what each unit does to the outputs of what reads it.

    Block by block, on the inputs that the narrower blocks before send. ``folder`` takes one file for each block, with the
    weights that were fitted anew; it has to stay as long as the source is read.

    Raises:
        UserError: activations that are not finite.
    """
    kept: Kept = {part.name: [] for part in parts}
    files: dict[str, Path | None] = {}
    errors: dict[str, float] = {}
    with BlockStream(skeleton, tokens, device=device, dtype=dtype, spill_dir=folder) as stream:
        stream.prepare()
        for index in range(len(skeleton.blocks)):
            skeleton.load_block(index, device=device, dtype=dtype)
            fitted: dict[str, Tensor] = {}
            for part in parts:
                view = part.readers[index]
                stays, theta, error = _without(skeleton, stream, index, view, part)
                errors[view.name] = float(f"{error:.2g}")
                kept[part.name].append(stays)
                fitted |= _on_disk(skeleton, view, theta, _columns(part, view, stays))
            path = folder / f"{index}.safetensors"
            save_file(fitted, str(path))
            files |= dict.fromkeys(fitted, path)
            if index + 1 < len(skeleton.blocks):
                stream.advance(index)
            skeleton.release_block(index)
    record = {
        "kept": {name: [_packed(own) for own in blocks] for name, blocks in kept.items()},
        "errors": errors,
    }
    return _cut(skeleton, parts, kept, record, files)


def narrowed_again(skeleton: Skeleton, parts: Sequence[Part], record: Mapping[str, Any]) -> Source:
    """The same cuts as ``record`` has them; of the weights that were fitted anew only the shapes are known.

    Raises:
        UserError: a record of another model.
    """
    kept = {part.name: [_unpacked(own) for own in record["kept"].get(part.name, ())] for part in parts}
    for part in parts:
        sound = [len(own) == part.kept and own[-1] < part.total for own in kept[part.name]]
        if len(sound) != len(skeleton.blocks) or not all(sound):
            raise UserError(
                f"the record of {part.name} is none of {skeleton.source.path}: it was written for another model or recipe"
            )
    files: dict[str, Path | None] = {
        _piece(skeleton, view.parameter).disk: None for part in parts for view in part.readers.values()
    }
    return _cut(skeleton, parts, kept, record, files)


def _without(
    skeleton: Skeleton, stream: BlockStream, index: int, view: WeightView, part: Part
) -> tuple[list[int], Tensor, float]:
    """Which units of a block stay, and the weight that reads them, put in place with zeros for those that go."""
    (seen,) = stream.observe(index, {view.name: frozenset({"gram"})}).values()
    assert seen.gram is not None
    parameter = skeleton.parameter_of(view)
    weight = view.get(parameter.detach()).float()
    units = torch.arange(weight.shape[1], device=weight.device).view(part.total, -1)
    found = eliminate(weight, seen.gram, units, part.kept)
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
    config = {key: value for part in parts for key, value in part.config.items()}
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
