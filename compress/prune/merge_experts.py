"""Expert merging: a mixture with fewer routed experts, each the mean of a cluster whose outputs are alike.

The experts are clustered as in HC-SMoE (arXiv:2410.08589): average linkage over the distances of their outputs. The neurons of
a cluster are matched to those of its leader, the expert that most tokens are sent to, and the weights are averaged by the share
of the tokens that each expert had, as in M-SMoE (arXiv:2310.01334). The router keeps the leader's row, as a checkpoint of
transformers has one row for each expert: what the other rows said is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from compress.checkpoint.sliced_source import CutSource, refitted_source
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.linalg.matching import check_matching, matched
from compress.models.conversion import Piece
from compress.models.experts import Rows, gate_and_up
from compress.models.skeleton import Skeleton, open_skeleton
from compress.prune.expert_likeness import Likeness
from compress.prune.experts import (
    EXPERTS,
    RoutedExperts,
    first_experts,
    routed_experts,
    without_experts,
    without_experts_again,
)
from compress.prune.linkage import average_linkage
from compress.prune.units import as_bits, from_bits

MERGED = "merged"
"""The key of a record under which the clusters stand."""

Cluster = tuple[int, ...]
"""The numbers of the experts that become one, its leader first and the others rising."""


def clusters_of(routed: RoutedExperts, likeness: Likeness) -> list[Cluster]:
    """The clusters of a block's experts, by rising leader: in every routing group as many as experts stay."""
    size, stay = routed.total // routed.groups, routed.kept // routed.groups
    clusters = []
    for first in range(0, routed.total, size):
        group = slice(first, first + size)
        for places in average_linkage(likeness.distances[group, group], stay):
            members = [first + place for place in places]
            leader = max(members, key=lambda expert: (likeness.frequency[expert], -expert))
            clusters.append((leader, *(expert for expert in members if expert != leader)))
    return sorted(clusters)


def merged_experts(
    skeleton: Skeleton, routed: RoutedExperts, likeness: Sequence[Likeness], folder: Path
) -> CutSource:
    """The source of the model whose experts are merged.

    Args:
        skeleton: the model; no block may be loaded.
        routed: its experts.
        likeness: of each block with experts, in order.
        folder: takes a file for each block with its merged experts; it has to stay as long as the source is read.

    Raises:
        UserError: experts whose gates and neurons are not known, or scipy is not installed.
    """
    clusters = [clusters_of(routed, one) for one in likeness]
    smaller = without_experts(skeleton, routed, [[one[0] for one in block] for block in clusters])
    small = open_skeleton(smaller)
    files: dict[str, Path | None] = {}
    for owner, block, one in zip(routed.owners.items(), clusters, likeness, strict=True):
        index, name = owner
        made = _merged(skeleton, _Neurons.of(skeleton, routed, name), block, one.frequency)
        path = folder / f"experts-{index}.safetensors"
        save_file(dict(_on_disk(small, made)), str(path))
        files |= dict.fromkeys(_disks(small, routed, name, block), path)
    return refitted_source(smaller, files, _record(smaller, clusters))


def check_mergeable(skeleton: Skeleton, routed: RoutedExperts) -> None:
    """Refuse, before any work, experts that cannot be merged.

    Raises:
        UserError: their gates and neurons are not known, or scipy is not installed.
    """
    check_matching()
    for owner in routed.owners.values():
        _Neurons.of(skeleton, routed, owner)


def first_merged(skeleton: Skeleton, routed: RoutedExperts) -> CutSource:
    """The source of the smaller model before any expert is merged: names and shapes alone.

    Raises:
        UserError: experts that cannot be merged.
    """
    check_mergeable(skeleton, routed)
    smaller = first_experts(skeleton, routed)
    return replace(smaller, width_pruned=_record(smaller, []))


def fewer_experts_again(skeleton: Skeleton, share: float, record: Mapping[str, Any]) -> Source:
    """Repeat what :func:`without_experts` or :func:`merged_experts` recorded; of merged experts only the shapes are known.

    Raises:
        UserError: a record of another model or share.
    """
    smaller = without_experts_again(skeleton, share, record)
    if MERGED not in record:
        return smaller
    routed, small = routed_experts(skeleton, share), open_skeleton(smaller)
    kept = map(from_bits, record["kept"][EXPERTS])
    members = [[from_bits(bits) for bits in block] for block in record[MERGED][EXPERTS]]
    clusters = [list(zip(*block, strict=True)) for block in zip(kept, members, strict=True)]
    led = all(leader in own for block in clusters for leader, own in block)
    if not led or any(sorted(chain(*block)) != list(range(routed.total)) for block in members):
        raise UserError(
            f"the record of experts is none of {skeleton.source.path}: it was written for another model or recipe"
        )
    files: dict[str, Path | None] = {}
    for owner, block in zip(routed.owners.values(), members, strict=True):
        files |= dict.fromkeys(_disks(small, routed, owner, block))
    return refitted_source(smaller, files, _record(smaller, members))


def _record(smaller: CutSource, clusters: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
    members = [[as_bits(sorted(one)) for one in block] for block in clusters]
    return {**smaller.width_pruned, MERGED: {EXPERTS: members}}


@dataclass(frozen=True)
class _Neurons:
    """Where the neurons of an expert are in its parameters.

    Attributes:
        runs: parameter → the dimension of an expert's slice that runs over the neurons, and their entries there: two runs
            where gate and up lie in one parameter; none where it has no such dimension.
    """

    runs: Mapping[str, tuple[int, tuple[Rows, ...]]]

    @classmethod
    def of(cls, skeleton: Skeleton, routed: RoutedExperts, owner: str) -> _Neurons:
        """Those of the module of experts with this name.

        Raises:
            UserError: it holds parameters that are not known here, or gate and up are not found.
        """
        module: Any = skeleton.model.get_submodule(owner)
        turned = bool(module.is_transposed)
        fused = "gate_up_proj" if module.has_gate else "up_proj"
        features = getattr(module, fused).shape[2 if turned else 1]
        count = module.down_proj.shape[1 if turned else 2]
        rows = gate_and_up(module, features) if module.has_gate else ((0, features, 1),)
        whole: dict[str, tuple[int, tuple[Rows, ...]]] = {
            f"{fused}_bias": (0, rows or ()),
            fused: (1 if turned else 0, rows or ()),
            "down_proj": (0 if turned else 1, ((0, count, 1),)),
            "down_proj_bias": (0, ()),
        }
        held = [name.removeprefix(f"{owner}.") for name in routed.dims if name.startswith(f"{owner}.")]
        if rows is None or not set(held) <= whole.keys():
            raise UserError(
                f"'width_pruning.experts_by: merge': the experts of {type(skeleton.model).__name__} hold their neurons in a "
                "way that is not known here; prune them by reap or frequency"
            )
        return cls({f"{owner}.{leaf}": whole[leaf] for leaf in held})

    def rows(self, expert: Mapping[str, Tensor]) -> Tensor:
        """All that belongs to each neuron of an expert, fp32 ``[neurons, features]``."""
        parts = [
            tensor.index_select(dim, torch.arange(*run)).movedim(dim, 0).reshape(len(range(*run)), -1)
            for name, tensor in expert.items()
            for dim, runs in [self.runs[name]]
            for run in runs
        ]
        return torch.cat([part.float() for part in parts], 1)

    def ordered(self, expert: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """The same expert with its neurons in another order."""
        result = {}
        for name, (dim, runs) in self.runs.items():
            entries = torch.arange(expert[name].shape[dim])
            for run in runs:
                entries[torch.arange(*run)] = torch.arange(*run)[order]
            result[name] = expert[name].index_select(dim, entries)
        return result


_Made = dict[int, dict[str, Tensor]]
"""Number in the smaller model → parameter → the merged expert's slice of it, in fp32."""


def _merged(
    skeleton: Skeleton, neurons: _Neurons, clusters: Sequence[Cluster], frequency: Sequence[float]
) -> _Made:
    """The experts that clusters of several become."""
    made: _Made = {}
    for number, cluster in enumerate(clusters):
        if len(cluster) == 1:
            continue
        total = sum(frequency[one] for one in cluster)
        shares = [frequency[one] / total if total else 1 / len(cluster) for one in cluster]
        leader = _expert(skeleton, neurons.runs, cluster[0])
        rows = neurons.rows(leader)
        mean = {name: shares[0] * tensor.float() for name, tensor in leader.items()}
        for member, share in zip(cluster[1:], shares[1:], strict=True):
            if share == 0:
                continue
            other = _expert(skeleton, neurons.runs, member)
            for name, tensor in neurons.ordered(other, matched(rows, neurons.rows(other))).items():
                mean[name] += share * tensor.float()
        made[number] = mean
    return made


def _expert(skeleton: Skeleton, parameters: Mapping[str, Any], expert: int) -> dict[str, Tensor]:
    """An expert's slice of each parameter, as the source has it."""
    found = {}
    for name in parameters:
        pieces = [piece for piece in skeleton.pieces[name] if _holds(piece, expert)]
        dtype = skeleton.source.headers[pieces[0].disk].dtype
        result = torch.empty(skeleton.model.get_parameter(name).shape[1:], dtype=dtype)
        for piece in pieces:
            _place(piece, result).copy_(_slice(piece, skeleton.source.read(piece.disk), expert))
        found[name] = result
    return found


def _on_disk(small: Skeleton, made: _Made) -> Iterator[tuple[str, Tensor]]:
    """Disk name → the tensor with the merged experts in it, of the smaller model."""
    tensors: dict[str, Tensor] = {}
    for number, values in made.items():
        for name, value in values.items():
            for piece in small.pieces[name]:
                if _holds(piece, number):
                    if piece.disk not in tensors:
                        tensors[piece.disk] = small.source.read(piece.disk).clone().contiguous()
                    _slice(piece, tensors[piece.disk], number).copy_(_place(piece, value))
    yield from tensors.items()


def _disks(
    small: Skeleton, routed: RoutedExperts, owner: str, clusters: Sequence[Sequence[int]]
) -> Iterator[str]:
    """The disk tensors of the smaller model that hold merged experts of a module."""
    several = [number for number, cluster in enumerate(clusters) if len(cluster) > 1]
    for name in routed.dims:
        if name.startswith(f"{owner}."):
            for piece in small.pieces[name]:
                if any(_holds(piece, number) for number in several):
                    yield piece.disk


def _holds(piece: Piece, expert: int) -> bool:
    return piece.box[0][0] <= expert < piece.box[0][1]


def _slice(piece: Piece, disk: Tensor, expert: int) -> Tensor:
    """What a disk tensor holds of an expert: a view."""
    return piece.of_disk(disk)[expert - piece.box[0][0]]


def _place(piece: Piece, slice_: Tensor) -> Tensor:
    """The part of an expert's slice that a piece is: a view."""
    return slice_[tuple(slice(*bounds) for bounds in piece.box[1:])]
