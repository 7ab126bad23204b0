"""Which tensors on disk make up which parameter of the model, by transformers' own tables of renames and
conversions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.conversion import Misfit, NotUnderstood, Piece, Symbol, follow


@dataclass(frozen=True, eq=False)
class Conversion:
    """A conversion that only transformers can run: the parameters it makes and the disk tensors it makes
    them from."""

    converter: WeightConverter
    target: str
    disk: Mapping[str, list[str]]

    def run(self, source: Source, model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
        """The parameters, cast to `dtype` before they are converted, as transformers does it."""
        converter = deepcopy(self.converter)
        for pattern, names in self.disk.items():
            for name in names:
                converter.add_tensor(self.target, name, pattern, source.read(name).to(dtype, copy=True))
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: part[0] if isinstance(part, list) else part for name, part in made.items()}

    @property
    def names(self) -> list[str]:
        """The tensors on disk that it reads."""
        return [name for names in self.disk.values() for name in names]

    @property
    def operations(self) -> str:
        """The names of its operations, for people."""
        return ", ".join(type(operation).__name__ for operation in self.converter.operations)


@dataclass(frozen=True, eq=False)
class DiskMap:
    """pieces: by parameter, the parts it is put together from. conversions: by parameter, where that is not
    possible. extra: disk tensors that no parameter uses. tied: parameter → the parameter that it is tied
    to."""

    pieces: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    conversions: dict[str, Conversion] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    twins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By parameter, disk tensors that hold it once more (a tied head which is on disk, too)."""

    def is_known(self, parameter: str) -> bool:
        """Whether it is known where a parameter lies on disk."""
        return parameter in self.pieces or parameter in self.conversions


def map_disk(model: PreTrainedModel, source: Source, supplied: Mapping[str, Sequence[int]]) -> DiskMap:
    """Finds for each parameter and persistent buffer of the model (on meta, not tied) what it is made of.

    supplied: disk tensors, by name with their shapes, that are not in the source but will be given on
    loading.
    Raises: `UserError` where shapes do not fit. Parameters that are nowhere are left for the caller to
    judge.
    """
    # An empty tensor where a weight would be stands for one that is packed beside it.
    shapes: dict[str, tuple[int, ...]] = {
        name: info.shape for name, info in source.headers.items() if info.nbytes or not supplied
    }
    shapes.update({name: tuple(shape) for name, shape in supplied.items()})
    parameters = model.state_dict()
    result = DiskMap()
    collected = _collect(model, list(shapes), parameters, result)
    for target, (converter, disk) in collected.items():
        if converter is None:
            ((name,),) = disk.values()
            # What is supplied is given [out, in], whichever way round the parameter is.
            shape = parameters[target].shape if name in supplied else shapes[name]
            _put(result, target, Symbol.of(name, shape), parameters, source)
        else:
            _convert(result, target, converter, disk, shapes, parameters, source)
    _tie(model, result, source)
    return result


_Collected = dict[str, tuple[WeightConverter | None, dict[str, list[str]]]]


def _collect(
    model: PreTrainedModel, names: list[str], parameters: Mapping[str, Tensor], result: DiskMap
) -> _Collected:
    """The disk tensors of each (first) parameter, by the source pattern that they match. Follows the loop of
    `transformers.core_model_loading.convert_and_load_state_dict_in_model`."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    collected: _Collected = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
        if target not in parameters and name in parameters:
            target, pattern = rename_source_key(name, [], [], prefix, parameters)
        if target not in parameters:
            result.extra.append(name)
        elif pattern is None:
            if target in collected:
                result.extra.append(name)
            else:
                collected[target] = (None, {name: [name]})
        else:
            converter, disk = collected.setdefault(target, (by_pattern[pattern], {}))
            if converter is None:
                result.extra.append(name)
            else:
                disk.setdefault(pattern, []).append(name)
    return collected


def _convert(
    result: DiskMap,
    target: str,
    converter: WeightConverter,
    disk: dict[str, list[str]],
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Mapping[str, Tensor],
    source: Source,
) -> None:
    inputs = {pattern: [Symbol.of(name, shapes[name]) for name in names] for pattern, names in disk.items()}
    prefix, _, suffix = target.partition(converter.target_patterns[0])
    try:
        symbols = follow(
            converter.operations,
            inputs,
            converter.source_patterns,
            converter.target_patterns,
            tuple(parameters[target].shape),
        )
    except Misfit:
        counts = " and ".join(f"{len(names)} like {names[0]}" for names in disk.values())
        raise UserError(
            f"{source.path}: some of the tensors for {target} are missing or of another shape ({counts})."
        ) from None
    except NotUnderstood:
        conversion = Conversion(converter, target, disk)
        for pattern in converter.target_patterns:
            result.conversions[prefix + pattern + suffix] = conversion
        return
    for pattern, symbol in symbols.items():
        _put(result, prefix + pattern + suffix, symbol, parameters, source)


def _put(
    result: DiskMap, target: str, symbol: Symbol, parameters: Mapping[str, Tensor], source: Source
) -> None:
    shape = tuple(parameters[target].shape)
    if symbol.shape != shape:
        names = [piece.disk for piece in symbol.pieces]
        what = (
            f"tensor {names[0]} has" if len(names) == 1 else f"{len(names)} tensors like {names[0]} make up"
        )
        raise UserError(
            f"{source.path}: {what} shape {list(symbol.shape)}, but the model that config.json describes "
            f"needs {list(shape)} for {target}."
        )
    result.pieces[target] = symbol.pieces


def _tie(model: PreTrainedModel, result: DiskMap, source: Source) -> None:
    """Tied parameters, as transformers ties them: by whichever is on disk; not at all where both are and
    differ."""
    for target, origin in model.all_tied_weights_keys.items():
        if target == origin:
            continue
        if result.is_known(target) and result.is_known(origin):
            if not _equal_on_disk(source, result.pieces.get(target, ()), result.pieces.get(origin, ())):
                continue
            names = tuple(piece.disk for piece in result.pieces.pop(target))
            result.twins[origin] = (*result.twins.get(origin, ()), *names)
        elif result.is_known(target):
            if target in result.pieces:
                result.pieces[origin] = result.pieces.pop(target)
            else:
                result.conversions[origin] = result.conversions.pop(target)
        result.tied[target] = origin


def _equal_on_disk(source: Source, first: Sequence[Piece], second: Sequence[Piece]) -> bool:
    if len(first) != 1 or len(second) != 1:
        return False
    pair = (first[0].disk, second[0].disk)
    if any(name not in source.headers for name in pair):
        return False
    return torch.equal(source.read(pair[0]), source.read(pair[1]))


def missing(model: PreTrainedModel, disk: DiskMap) -> list[str]:
    """Parameters and persistent buffers of some size that neither the disk nor a tied parameter holds, and that
    transformers does not say may be missing."""
    optional = [
        re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    ]
    names: Any = model.state_dict()
    return [
        name
        for name in names
        if names[name].numel()
        and not disk.is_known(disk.tied.get(name, name))
        and not any(pattern.search(name) for pattern in optional)
    ]
