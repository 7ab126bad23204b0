"""A checkpoint seen without some of its decoder blocks: the configuration of the smaller model, and its tensors' names.

Nothing is known here of model families. Which setting counts the blocks is found by building smaller models on meta; where a
tensor's name holds the number of its block is found from the names of all blocks' tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from compress.checkpoint.headers import TensorInfo
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.build import build_on_meta
from compress.models.skeleton import Skeleton
from compress.models.towers import find_blocks
from compress.models.views import block_of

_GENERAL = frozenset(PreTrainedConfig().to_dict())
"""Settings that every model has: none of them goes block by block."""


def without_blocks(skeleton: Skeleton, dropped: Sequence[int]) -> Source:
    """The skeleton's source as if its ``dropped`` decoder blocks had never been: the others are renumbered.

    Nothing is copied: the tensors are the same bytes under other names.

    Raises:
        UserError: all blocks would go, no setting of ``config.json`` makes the smaller model, or the tensors of several
            blocks are stored together.
    """
    source, total = skeleton.source, len(skeleton.blocks)
    kept = [index for index in range(total) if index not in set(dropped)]
    if not kept or len(kept) + len(set(dropped)) != total:
        raise UserError(f"{source.path}: a model of {total} blocks cannot lose {sorted(dropped)}")
    if len(kept) == total:
        return source
    changes = _changes(skeleton, kept)
    return replace(
        source,
        headers=_renumbered(skeleton, kept),
        config={**source.config, **changes},
        changes={**source.changes, **changes},
        dropped=tuple(sorted(dropped)),
    )


@dataclass(frozen=True)
class _Section:
    """The configuration of the model, or that of a part under ``key``, as an object and as ``config.json`` has it."""

    key: str | None
    config: PreTrainedConfig
    stored: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, those that ``config.json`` leaves to their defaults as well."""
        return {**self.config.to_dict(), **self.stored}

    def changes(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Changes of ``config.json`` that give this section other settings."""
        return dict(settings) if self.key is None else {self.key: {**self.stored, **settings}}


def _sections(skeleton: Skeleton) -> list[_Section]:
    """All sections of the configuration, that of the language model first."""
    config, stored = skeleton.model.config, skeleton.source.config
    parts = [
        _Section(key, part, stored[key])
        for key, part in vars(config).items()
        if isinstance(part, PreTrainedConfig) and isinstance(stored.get(key), dict)
    ]
    sections = [_Section(None, config, stored), *parts]
    return sorted(sections, key=lambda section: section.config is not config.get_text_config())


def _changes(skeleton: Skeleton, kept: Sequence[int]) -> dict[str, Any]:
    """Changes of ``config.json`` by which transformers builds the model of the ``kept`` blocks.

    Raises:
        UserError: none do.
    """
    for changes in chain.from_iterable(
        _proposals(section, skeleton, kept) for section in _sections(skeleton)
    ):
        config = {**skeleton.source.config, **changes}
        smaller = replace(skeleton.source, config=config, changes={**skeleton.source.changes, **changes})
        try:
            model = build_on_meta(smaller)
        except UserError:  # not the setting that counts blocks
            continue
        if _is_model_of(model, skeleton, kept):
            return changes
    gone = ", ".join(str(index) for index in range(len(skeleton.blocks)) if index not in kept)
    raise UserError(
        f"{skeleton.source.path / 'config.json'}: no setting makes the model without its blocks {gone}, because its blocks "
        "depend on their place: take a recipe without 'depth_pruning' or leave out other blocks"
    )


def _proposals(section: _Section, skeleton: Skeleton, kept: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Changes that may make the smaller model: each setting that equals the number of blocks by itself, then all of them.

    Lists with one entry for each block lose the entries of the dropped ones.
    """
    total, settings = len(skeleton.blocks), section.settings
    lists = {
        name: [value[index] for index in kept]
        for name, value in settings.items()
        if isinstance(value, list | tuple) and len(value) == total and not _is_general(name)
    }
    counts = [
        name
        for name, value in settings.items()
        if type(value) is int and value == total and not _is_general(name)
    ]
    for name in counts:
        yield section.changes({name: len(kept), **lists})
    if len(counts) > 1:
        yield section.changes({**dict.fromkeys(counts, len(kept)), **lists})


def _is_general(name: str) -> bool:
    return name in _GENERAL or name.endswith(("token_id", "token_ids"))


def _is_model_of(model: PreTrainedModel, skeleton: Skeleton, kept: Sequence[int]) -> bool:
    """Whether ``model`` has the ``kept`` blocks of the skeleton's model, in their order, and the same parts around them."""
    try:
        blocks = find_blocks(model)
    except UserError:
        return False
    if blocks != skeleton.blocks[: len(kept)]:
        return False
    alike = all(
        _are_alike(model.get_submodule(name), new, skeleton.block_module(old), old)
        for new, (name, old) in enumerate(zip(blocks, kept, strict=True))
    )
    return alike and _shapes(model, blocks, range(len(kept))) == _shapes(
        skeleton.model, skeleton.blocks, kept
    )


def _shapes(
    model: PreTrainedModel, blocks: Sequence[str], kept: Sequence[int]
) -> dict[tuple[int | None, str], tuple[int, ...]]:
    """Place among the ``kept`` blocks and name within the block → shape; for all else no place and the whole name."""
    shapes: dict[tuple[int | None, str], tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        block = block_of(name, blocks)
        if block is None:
            shapes[None, name] = tuple(tensor.shape)
        elif block in kept:
            shapes[kept.index(block), name.removeprefix(f"{blocks[block]}.")] = tuple(tensor.shape)
    return shapes


def _are_alike(new: nn.Module, new_index: int, old: nn.Module, old_index: int) -> bool:
    """Whether two blocks have the same modules and simple attributes, but for their index in the model."""
    of_new, of_old = _attributes(new), _attributes(old)
    return of_new.keys() == of_old.keys() and all(
        value == of_old[name] or (value == new_index and of_old[name] == old_index)
        for name, value in of_new.items()
    )


def _attributes(block: nn.Module) -> dict[str, Any]:
    """Module → its class, module and attribute → its value where that is a number, a string or None."""
    attributes: dict[str, Any] = {}
    for path, module in block.named_modules():
        attributes[path] = type(module).__qualname__
        simple = {
            k: v for k, v in vars(module).items() if v is None or isinstance(v, bool | int | float | str)
        }
        attributes.update({f"{path}:{name}": value for name, value in simple.items()})
    return attributes


def _renumbered(skeleton: Skeleton, kept: Sequence[int]) -> dict[str, TensorInfo]:
    """The headers without the tensors of dropped blocks, those of the others under their new numbers."""
    places = {old: new for new, old in enumerate(kept)}
    prefixes = _prefixes(skeleton)
    headers: dict[str, TensorInfo] = {}
    for name, info in skeleton.source.headers.items():
        prefix, number, rest = _split(name, prefixes)
        if number is None or number >= len(skeleton.blocks):
            headers[name] = info
        elif number in places:
            headers[f"{prefix}{places[number]}{rest}"] = info
    return headers


def _split(name: str, prefixes: Sequence[str]) -> tuple[str, int | None, str]:
    """A disk tensor's name before the number of its block, that number, and the rest; None outside the blocks."""
    for prefix in prefixes:
        number, dot, rest = name[len(prefix) :].partition(".")
        if name.startswith(prefix) and dot and number.isdecimal():
            return prefix, int(number), f".{rest}"
    return name, None, ""


def renumbered_names(skeleton: Skeleton, dropped: Sequence[int]) -> Callable[[str], str]:
    """What tensors on disk are called without the ``dropped`` blocks, as :func:`without_blocks` names them."""
    kept = [index for index in range(len(skeleton.blocks)) if index not in set(dropped)]
    places, prefixes = {old: new for new, old in enumerate(kept)}, _prefixes(skeleton)

    def renamed(name: str) -> str:
        prefix, number, rest = _split(name, prefixes)
        return name if number is None or number not in places else f"{prefix}{places[number]}{rest}"

    return renamed


def _prefixes(skeleton: Skeleton) -> list[str]:
    """What the names of blocks' tensors on disk begin with, up to the number of the block.

    Raises:
        UserError: a tensor is shared by several blocks, or its name does not hold its block's number where others do.
    """
    by_block = _disk_names(skeleton)
    candidates = [
        {prefix for name in names for prefix in _before(name, block)} for block, names in by_block.items()
    ]
    prefixes = sorted(set.intersection(*candidates), key=len)
    for block, names in by_block.items():
        for name in names:
            if _split(name, prefixes)[1] != block:
                raise UserError(
                    f"{skeleton.source.path}: {name} is not stored by the number of its block ({block}), so that no block can "
                    "be left out: take a recipe without 'depth_pruning'"
                )
    return prefixes


def _disk_names(skeleton: Skeleton) -> dict[int, list[str]]:
    """Block → the disk tensors of its parameters."""
    names: dict[int, list[str]] = {index: [] for index in range(len(skeleton.blocks))}
    for parameter, stored in skeleton.stored.items():
        block = block_of(parameter, skeleton.blocks)
        if block is not None:
            names[block].extend(stored)
    return names


def _before(name: str, number: int) -> Iterator[str]:
    """What comes before each part of a dotted name that is ``number``."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part == str(number):
            yield "".join(f"{before}." for before in parts[:place])
