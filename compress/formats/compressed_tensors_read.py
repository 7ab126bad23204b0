"""Reads the packed weights of ``compressed-tensors`` checkpoints, ours and those of other programs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compress_kernels.layouts import Layout, PackedFloat, PackedInteger, PlainInteger

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.packed_weight import PackedWeight

from .input_activations import scheme_of
from .weight_arguments import FLOAT_FORMATS, float_layout_of

PACKED, SCALE = ".weight_packed", ".weight_scale"
_INTEGER_FORMATS = frozenset({"pack-quantized", "int-quantized"})


def reads_packed(source: Source, config: Mapping[str, Any]) -> bool:
    """Whether :func:`read_compressed_tensors` reads every group of a checkpoint, and floats as their layouts have them."""
    groups = list((config.get("config_groups") or {}).values())
    if not all(_is_read(group, config) for group in groups):
        return False
    names = [tensor.removesuffix(SCALE) for tensor in source.headers if tensor.endswith(SCALE)]
    return all(_fits(source, name, _group_of(source, name, groups, config)["weights"]) for name in names)


def _fits(source: Source, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the tensors of a weight are those of its layout; integers are always read as one."""
    if arguments.get("type") != "float":
        return True
    layout = float_layout_of(arguments, source.headers[f"{name}{SCALE}"].dtype)
    if layout is None:
        return False
    try:
        specs = layout.specs(_float_shape(source, name))
    except ValueError:
        return False
    found = {suffix: source.headers.get(f"{name}.{suffix}") for suffix in specs}
    return all(
        info is not None and (info.shape, info.dtype) == (specs[suffix].shape, specs[suffix].dtype)
        for suffix, info in found.items()
    )


def read_compressed_tensors(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    """Name → weight of every one that a compressed-tensors checkpoint holds packed.

    Args:
        source: the checkpoint.
        config: its ``quantization_config``.

    Raises:
        UserError: a weight is of no group of the configuration, or of a form that this program does not read.
    """
    groups = list(config.get("config_groups", {}).values())
    result = {}
    for tensor, info in source.headers.items():
        if not tensor.endswith(SCALE):
            continue
        name = tensor.removesuffix(SCALE)
        group = _group_of(source, name, groups, config)
        arguments, activations = group["weights"], scheme_of(group.get("input_activations"))
        if arguments.get("type") == "float":
            layout: Layout = _float_layout(source, name, arguments)
            out, columns = _float_shape(source, name)
        elif f"{name}{PACKED}" in source.headers:
            layout = PackedInteger(
                arguments["num_bits"], _strategy(arguments), arguments.get("symmetric", True), info.dtype
            )
            out, columns = (int(size) for size in source.read(f"{name}.weight_shape"))
        else:
            layout = PlainInteger(arguments["num_bits"], _strategy(arguments), info.dtype)
            out, columns = source.headers[f"{name}.weight"].shape
        suffixes = (*layout.specs((out, columns)), *(activations.stored if activations else ()))
        names = {suffix: f"{name}.{suffix}" for suffix in suffixes}
        result[name] = PackedWeight(layout, (out, columns), names, activations)
    return result


def _group_of(
    source: Source, name: str, groups: list[Mapping[str, Any]], config: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The config group that targets ``name``: by exact name first, then by pattern, then by class."""
    named = [group for group in groups if name in group["targets"]]
    matched = [group for group in groups if any(_matches(target, name) for target in group["targets"])]
    by_class = [group for group in groups if "Linear" in group["targets"]]
    for group in (*named, *matched, *by_class, *groups[:1]):
        if not _is_read(group, config):
            form = group.get("format") or config.get("format")
            raise UserError(f"{source.path}: {name} is stored as '{form}', which is not read here yet")
        return group
    raise UserError(f"{source.path / 'config.json'} has no config group for {name}")


def _is_read(group: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether weights are read packed in the format of a group."""
    kinds = {"int": _INTEGER_FORMATS, "float": FLOAT_FORMATS}
    kind = (group.get("weights") or {}).get("type", "int")
    return (group.get("format") or config.get("format")) in kinds.get(kind, ())


def _float_layout(source: Source, name: str, arguments: Mapping[str, Any]) -> PackedFloat:
    layout = float_layout_of(arguments, source.headers[f"{name}{SCALE}"].dtype)
    if layout is None:
        raise UserError(
            f"{source.path}: the floats of {name} are of a kind that is not read here: {arguments}"
        )
    return layout


def _float_shape(source: Source, name: str) -> tuple[int, int]:
    """``[out, in]`` by the stored elements: bytes of one or of two."""
    packed = source.headers.get(f"{name}{PACKED}")
    out, columns = (packed or source.headers[f"{name}.weight"]).shape
    return out, columns * (2 if packed else 1)


def _matches(target: str, name: str) -> bool:
    return target.startswith("re:") and re.match(target[3:], name) is not None


def _strategy(arguments: Mapping[str, Any]) -> Any:
    strategy = arguments.get("strategy")
    if strategy == "group" or (strategy is None and arguments.get("group_size")):
        return arguments["group_size"]
    return strategy or "tensor"
