"""Width pruning: FFN neurons and whole attention groups left out, the weights that read them fitted by least squares.

Where all blocks keep the same numbers, the result is a smaller model of the same architecture, which loads anywhere. Where
they do not, ``config.json`` lists the shapes (:mod:`compress.models.resize`).
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
from compress.linalg.eliminate import eliminate
from compress.models.conversion import Piece
from compress.models.resize import SHAPES
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.prune.neuron_budget import counts_by_loss, rooted
from compress.prune.twins import twins
from compress.prune.units import Part, as_bits, counted_neurons, from_bits, groups, neurons
from compress.recipe.sections import GRADIENT_TOKENS

Kept = dict[str, list[list[int]]]
"""Kind of unit → block → the numbers of the units that stay."""


def parts_of(
    skeleton: Skeleton,
    *,
    neuron_share: float | None,
    group_share: float | None,
    neuron_counts: Mapping[int, int] | None = None,
) -> tuple[Part, ...]:
    """The kinds of units that the recipe names, in the order in which a block computes them.

    A share may round to all of them: such a part does not prune (:attr:`Part.prunes`).

    Args:
        skeleton: the model.
        neuron_share: the share of the FFN neurons that stay; None for all.
        group_share: the share of the attention groups that stay; None for all.
        neuron_counts: block → how many of its FFN neurons stay, all in the others; None for ``neuron_share``.

    Raises:
        UserError: an architecture whose units cannot be left out, or a block or a number that it does not have.
    """
    parts = [groups(skeleton, group_share)] if group_share is not None else []
    parts += [neurons(skeleton, neuron_share)] if neuron_share is not None else []
    parts += [counted_neurons(skeleton, neuron_counts)] if neuron_counts is not None else []
    return tuple(parts)


def width_pruned(
    skeleton: Skeleton,
    parts: Sequence[Part],
    tokens: Tensor,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    folder: Path,
    allocate: str = "uniform",
    merge: float | None = None,
    seed: int = 0,
    gradient_tokens: int = GRADIENT_TOKENS,
) -> Source:
    """Width pruning block by block: leave out the units whose readers lose least, refit the readers.

    A unit is judged by the error that its absence makes in the outputs of the weight that reads it, on the inputs that the
    pruned blocks before it send.

    Args:
        skeleton: the model; no block may be loaded.
        parts: kinds of units, from :func:`parts_of`, that prune.
        tokens: int64 ``[samples, length]``.
        device, dtype: where and in what blocks are computed.
        folder: takes a file for each block with its refitted weights; it has to stay as long as the source is read.
        allocate: ``"uniform"``, or ``"fisher"``: blocks keep different numbers of neurons, chosen by the model's loss.
        merge: neurons whose rows are at least so alike (a cosine) go first; None judges all by the error.
        seed, gradient_tokens: for the gradients of ``"fisher"``: their labels, and on how many tokens they are taken at most.

    Returns:
        The source of the smaller model: tensors are cut when they are read.

    Raises:
        UserError: activations or gradients that are not finite.
    """
    gradients = folder / "gradients"
    if allocate == "fisher":
        gradients.mkdir(exist_ok=True)
        options: dict[str, Any] = {"device": device, "dtype": dtype, "seed": seed, "folder": gradients}
        options["gradient_tokens"] = gradient_tokens
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
                if part.stays(index) == part.total:
                    kept[part.name].append(list(range(part.total)))
                    continue
                view = part.readers[index]
                first = _twins(skeleton, index, view, part, merge)
                moments = gradients if allocate == "fisher" and part.name == "neurons" else None
                units, theta, error = _pruned(skeleton, walk.stream, index, view, part, moments, first)
                errors[view.name] = float(f"{error:.2g}")
                kept[part.name].append(units)
                fitted |= _on_disk(skeleton, view, theta, _columns(part, view, units))
            path = folder / f"{index}.safetensors"
            save_file(fitted, str(path))
            files |= dict.fromkeys(fitted, path)
    before = skeleton.source.width_pruned.get("kept", {})
    record = {
        **skeleton.source.width_pruned,
        "kept": {**before, **{name: [as_bits(units) for units in blocks] for name, blocks in kept.items()}},
        "errors": errors,
        **({"uneven": uneven} if (uneven := [part.name for part in parts if part.counts]) else {}),
    }
    return _cut(skeleton, parts, kept, record, files)


def width_pruned_again(skeleton: Skeleton, parts: Sequence[Part], record: Mapping[str, Any]) -> Source:
    """Repeat the cuts of a ``record``; of the refitted weights only the shapes are known.

    Raises:
        UserError: a record of another model.
    """
    kept = {part.name: [from_bits(units) for units in record["kept"].get(part.name, ())] for part in parts}
    for part in parts:
        uneven = part.name in record.get("uneven", ())
        possible = [units and units[-1] < part.total for units in kept[part.name]]
        counts = [len(units) for units in kept[part.name]]
        as_planned = sum(counts) <= part.kept * len(counts) if uneven else set(counts) == {part.kept}
        if part.counts:
            as_planned = counts == [part.stays(block) for block in range(len(counts))]
        if len(counts) != len(skeleton.blocks) or not all(possible) or not as_planned:
            raise UserError(
                f"the record of {part.name} is none of {skeleton.source.path}: it was written for another model or recipe"
            )
    parts = [
        replace(part, counts={i: len(units) for i, units in enumerate(kept[part.name])})
        if part.name in record.get("uneven", ())
        else part
        for part in parts
    ]
    files: dict[str, Path | None] = {
        _piece(skeleton, view.parameter).disk: None
        for part in parts
        for block, view in part.readers.items()
        if part.stays(block) < part.total
    }
    return _cut(skeleton, parts, kept, record, files)


def width_of(skeleton: Skeleton, parts: Sequence[Part]) -> Source:
    """The source of the smaller model before any unit is chosen: names and shapes alone."""
    kept = {
        part.name: [as_bits(range(part.stays(block))) for block in range(len(skeleton.blocks))]
        for part in parts
    }
    uneven = [part.name for part in parts if part.counts]
    return width_pruned_again(skeleton, parts, {"kept": kept, "errors": {}, "uneven": uneven})


def _pruned(
    skeleton: Skeleton,
    stream: BlockStream,
    index: int,
    view: WeightView,
    part: Part,
    gradients: Path | None,
    first: Tensor | None,
) -> tuple[list[int], Tensor, float]:
    """The units of a block that stay, the refitted weight ``[out, in]`` that reads them, which is put in place with zeros for
    the others, and its error."""
    (statistics,) = stream.observe(index, {view.name: frozenset({"gram"})}).values()
    assert statistics.gram is not None
    parameter = skeleton.parameter_of(view)
    weight = view.get(parameter.detach()).float()
    units = torch.arange(weight.shape[1], device=weight.device).view(part.total, -1)
    scaled = None if gradients is None else rooted(view, weight, gradients)
    elimination = eliminate(weight, statistics.gram, units, part.stays(index), scaled, first)
    view.put(parameter, elimination.theta)
    return elimination.kept.tolist(), elimination.theta, elimination.error


def _twins(
    skeleton: Skeleton, index: int, view: WeightView, part: Part, merge: float | None
) -> Tensor | None:
    """The neurons of a block that go first because another computes the same; None where that is not asked."""
    if merge is None or part.name != "neurons":
        return None
    makers = [
        one
        for one in skeleton.block_views(index)
        if part.dims.get(one.parameter) == (1 if one.transposed else 0,) and one.shape[0] == part.total
    ]
    weights = [one.get(skeleton.parameter_of(one).detach()).float() for one in makers]
    reader = view.get(skeleton.parameter_of(view).detach()).float()
    return twins(weights, reader, part.total - part.stays(index), merge) if weights else None


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


def _columns(part: Part, view: WeightView, units: Sequence[int]) -> Tensor:
    return _entries(units, part.total, view.shape[1])


def _entries(units: Sequence[int], total: int, size: int) -> Tensor:
    """The entries of a dimension of ``size`` that belong to ``units``, of ``total`` units."""
    return torch.arange(size).view(total, -1)[torch.tensor(units, dtype=torch.int64)].flatten()


def _on_disk(skeleton: Skeleton, view: WeightView, theta: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """Disk name → the weight's kept columns, in the disk tensor's order of dimensions and dtype."""
    piece = _piece(skeleton, view.parameter)
    weight = theta.cpu()[:, columns]
    parameter = weight.T if view.transposed else weight
    stored = parameter if piece.dims == (0, 1) else parameter.T
    return {piece.disk: stored.to(skeleton.source.headers[piece.disk].dtype).contiguous()}
