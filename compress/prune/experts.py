"""Expert pruning: a mixture of experts with fewer routed experts in every block, a plain smaller model that loads anywhere.

No model family is named. Which setting counts the experts, and which tensors have a dimension that runs over them (the experts'
own, the router's weight and biases), is found by building the smaller model on meta. On disk an expert's tensors are renumbered
where each has its own, and cut where all experts are in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import nn

from compress.checkpoint.headers import TensorInfo
from compress.checkpoint.sliced_source import Cut, CutSource, cut_source
from compress.errors import UserError
from compress.models.build import build_on_meta
from compress.models.conversion import Piece
from compress.models.experts import CHOSEN, runs_experts
from compress.models.skeleton import Skeleton
from compress.models.views import block_of
from compress.prune.units import as_bits, changed, from_bits

EXPERTS = "experts"
_GROUPS = ("n_group", "num_expert_groups")


@dataclass(frozen=True)
class RoutedExperts:
    """The routed experts of a model, of which every block keeps the same number.

    Attributes:
        total: how many each block with experts has.
        kept: how many stay.
        groups: routing groups of equal size, of each of which ``kept / groups`` stay (1 where routing knows no groups).
        owners: block → the module that holds its experts.
        config: changes to ``config.json``.
        dims: parameter → the dimension that runs over the experts.
    """

    total: int
    kept: int
    groups: int
    owners: Mapping[int, str]
    config: Mapping[str, Any]
    dims: Mapping[str, int]

    @property
    def prunes(self) -> bool:
        """Whether any expert is left out."""
        return self.kept < self.total

    def best(self, saliency: Sequence[float]) -> list[int]:
        """The numbers of the experts that stay, rising: in every routing group those of the highest saliency.

        Args:
            saliency: of each expert of a block.
        """
        size, stay = self.total // self.groups, self.kept // self.groups
        chosen: list[int] = []
        for first in range(0, self.total, size):
            ranked = sorted(range(first, first + size), key=lambda expert: (-saliency[expert], expert))
            chosen += ranked[:stay]
        return sorted(chosen)


def routed_experts(skeleton: Skeleton, share: float) -> RoutedExperts:
    """The routed experts, of which about ``share`` stay: no fewer than a token is sent to.

    Raises:
        UserError: the model has none, or stores or counts them in a way that is not known here.
    """
    owners = _owners(skeleton)
    total = next(iter(owners.values())).down_proj.shape[0]
    settings: Any = skeleton.model.config.get_text_config()
    groups = next((n for key in _GROUPS if isinstance(n := getattr(settings, key, None), int) and n > 1), 1)
    if total % groups:
        groups = 1
    chosen = max((n for key in CHOSEN if isinstance(n := getattr(settings, key, None), int)), default=1)
    in_use = getattr(settings, "topk_group", None) or groups
    least = max(-(-chosen // min(in_use, groups)), 2 if groups > 1 else 1)
    kept = groups * min(total // groups, max(least, round(share * total / groups)))
    modules = {block: _name_of(skeleton, module) for block, module in owners.items()}
    if kept == total:
        return RoutedExperts(total, total, groups, modules, {}, {})
    config, dims = _smaller(skeleton, total, kept)
    return RoutedExperts(total, kept, groups, modules, config, dims)


def without_experts(skeleton: Skeleton, routed: RoutedExperts, kept: Sequence[Sequence[int]]) -> CutSource:
    """The skeleton's source as if its other experts had never been.

    Nothing is copied: what is not cut are the same bytes under other names.

    Args:
        skeleton: the model.
        routed: its experts.
        kept: by block (only those with experts), the numbers of the experts that stay, rising.
    """
    source = skeleton.source
    by_block = dict(zip(routed.owners, kept, strict=True))
    renamed: dict[str, str] = {}
    gone: set[str] = set()
    cuts: dict[str, tuple[Cut, ...]] = {}
    for parameter, dim in routed.dims.items():
        block = block_of(parameter, skeleton.blocks)
        assert block is not None
        stay = by_block[block]
        for slot in _slots(skeleton.pieces[parameter], dim):
            if isinstance(slot, Piece):
                where = slot.dims[dim]
                assert where is not None
                size = source.headers[slot.disk].shape[where] // routed.total
                rows = torch.arange(size * routed.total).view(routed.total, size)
                cuts[slot.disk] = (Cut(where, rows[torch.tensor(list(stay))].flatten()),)
            else:
                gone |= set(slot.values())
                renamed |= {slot[old]: slot[new] for new, old in enumerate(stay)}
    headers: dict[str, TensorInfo] = {}
    for name, info in source.headers.items():
        if name not in gone or name in renamed:
            headers[renamed.get(name, name)] = info
    record = {"kept": {EXPERTS: [as_bits(stay) for stay in kept]}, "errors": {}}
    smaller = replace(source, headers=headers) if renamed else source
    return cut_source(smaller, cuts, config=routed.config, record=record, refitted={})


def without_experts_again(skeleton: Skeleton, share: float, record: Mapping[str, Any]) -> CutSource:
    """Repeat what :func:`without_experts` recorded.

    Raises:
        UserError: a record of another model or share.
    """
    routed = routed_experts(skeleton, share)
    kept = [from_bits(bits) for bits in record["kept"][EXPERTS]]
    fits = all(len(stay) == routed.kept and stay[-1] < routed.total for stay in kept)
    if len(kept) != len(routed.owners) or not fits:
        raise UserError(
            f"the record of experts is none of {skeleton.source.path}: it was written for another model or recipe"
        )
    return without_experts(skeleton, routed, kept)


def first_experts(skeleton: Skeleton, routed: RoutedExperts) -> CutSource:
    """The source of the smaller model before any expert is chosen: names and shapes alone."""
    saliency = [float(routed.total - expert) for expert in range(routed.total)]
    return without_experts(skeleton, routed, [routed.best(saliency)] * len(routed.owners))


def _owners(skeleton: Skeleton) -> dict[int, Any]:
    """Block → its module of experts.

    Raises:
        UserError: there are none, several in a block, or of different numbers.
    """
    owners: dict[int, Any] = {}
    for index, block in enumerate(skeleton.blocks):
        found = [one for one in skeleton.model.get_submodule(block).modules() if runs_experts(one)]
        if len(found) > 1:
            raise UserError(
                f"'width_pruning.experts': block {index} of {_model(skeleton)} has several mixtures"
            )
        if found:
            owners[index] = found[0]
    counts = {module.down_proj.shape[0] for module in owners.values()}
    if len(counts) != 1:
        have = (
            "has no routed experts that are known here" if not counts else "has different numbers of experts"
        )
        raise UserError(f"'width_pruning.experts': {_model(skeleton)} {have}; leave it out of the recipe")
    return owners


def _name_of(skeleton: Skeleton, module: nn.Module) -> str:
    return next(name for name, one in skeleton.model.named_modules() if one is module)


def _smaller(skeleton: Skeleton, total: int, kept: int) -> tuple[dict[str, Any], dict[str, int]]:
    """The changes of ``config.json`` that make the model of ``kept`` experts, and parameter → the dimension that shrinks.

    Raises:
        UserError: none do.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.model.state_dict().items()}
    for config in _proposals(skeleton, total, kept):
        try:
            smaller = build_on_meta(changed(skeleton.source, config)).state_dict()
        except UserError:  # not the setting that counts experts
            continue
        dims = _dims(skeleton, shapes, {name: tuple(one.shape) for name, one in smaller.items()}, total, kept)
        if dims is not None:
            return config, dims
    raise UserError(
        f"'width_pruning.experts': no setting of {skeleton.source.path / 'config.json'} makes the model with {kept} of "
        f"{total} experts, or they are stored in a way that is not cut here; leave it out of the recipe"
    )


def _proposals(skeleton: Skeleton, total: int, kept: int) -> Iterator[dict[str, Any]]:
    """Each setting about experts that equals ``total`` by itself, then two together; in the language model's section."""
    config, stored = skeleton.model.config, skeleton.source.config
    text = config.get_text_config()
    key = next((name for name, part in vars(config).items() if part is text and text is not config), None)
    names = [
        name
        for name, value in text.to_dict().items()
        if type(value) is int and value == total and "expert" in name
    ]
    for count in (1, 2):
        for together in combinations(names, count):
            changes = dict.fromkeys(together, kept)
            yield changes if key is None else {key: {**stored.get(key, {}), **changes}}


def _dims(
    skeleton: Skeleton,
    before: Mapping[str, tuple[int, ...]],
    after: Mapping[str, tuple[int, ...]],
    total: int,
    kept: int,
) -> dict[str, int] | None:
    """Parameter → the dimension that runs over the experts; None where anything else differs, or the experts do not."""
    dims: dict[str, int] = {}
    if before.keys() != after.keys():
        return None
    for name, shape in before.items():
        differing = [dim for dim, (x, y) in enumerate(zip(shape, after[name], strict=True)) if x != y]
        if not differing:
            continue
        dim = differing[0]
        whole = shape[dim] * kept == after[name][dim] * total
        if len(differing) > 1 or not whole or block_of(name, skeleton.blocks) is None:
            return None
        if name not in skeleton.pieces:  # where it lies on disk is not known
            return None
        dims[name] = dim
    owned = {f"{_name_of(skeleton, module)}.down_proj" for module in _owners(skeleton).values()}
    return dims if owned <= dims.keys() else None


def _slots(pieces: Sequence[Piece], dim: int) -> Iterator[Piece | dict[int, str]]:
    """The parts of a parameter: a disk tensor that holds all experts, or expert → its own disk tensor."""
    alone: dict[Any, dict[int, str]] = {}
    seen: set[str] = set()
    for piece in pieces:
        if piece.dims[dim] is not None:
            if piece.disk not in seen:  # gate and up may be two parts of one tensor
                seen.add(piece.disk)
                yield piece
            continue
        place = (*piece.box[:dim], *piece.box[dim + 1 :])
        alone.setdefault((place, piece.disk_box), {})[piece.box[dim][0]] = piece.disk
    yield from alone.values()


def _model(skeleton: Skeleton) -> str:
    return type(skeleton.model).__name__
