"""What ``config.json`` says of packed weights: which there are, in what layout, under which tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from compress_kernels.layouts import Layout, PackedInteger, PlainInteger, check, layout_from_json
from torch import Tensor

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.export.bitsandbytes import NAMES as BITSANDBYTES
from compress.export.native import VERSION, disk_names

PACKED = ".weight_packed"
SCALE = ".weight_scale"


@dataclass(frozen=True)
class PackedWeight:
    """A weight as a checkpoint stores it: its layout, its shape ``[out, in]``, and suffix → name of each tensor."""

    layout: Layout
    shape: tuple[int, int]
    names: Mapping[str, str]

    def tensors(self, source: Source) -> dict[str, Tensor]:
        """Its tensors, mapped from the files.

        Raises:
            UserError: a tensor is missing or is not what the layout declares.
        """
        self.check(source)
        return {suffix: source.read(name) for suffix, name in self.names.items()}

    def check(self, source: Source) -> None:
        """Hold what the files' headers say of its tensors against its layout; no tensor is read.

        Raises:
            UserError: a tensor is missing or is not what the layout declares.
        """
        if missing := [name for name in self.names.values() if name not in source.headers]:
            raise UserError(f"{source.path} holds no tensor {missing[0]}, which its config.json promises")
        infos = {suffix: source.headers[name] for suffix, name in self.names.items()}
        found = {
            suffix: torch.empty(info.shape, dtype=info.dtype, device="meta") for suffix, info in infos.items()
        }
        try:
            check(self.layout, found, self.shape)
        except ValueError as error:
            where = next(iter(self.names.values())).rpartition(".")[0]
            raise UserError(f"{source.path}: {where} cannot be read: {error}") from error


def packed_weights(source: Source) -> dict[str, PackedWeight]:
    """Name → packed weight of a checkpoint; empty for a dense one.

    Raises:
        UserError: a quantization that this version does not read, named.
    """
    config = source.config.get("quantization_config")
    if not config:
        return {}
    method = config.get("quant_method")
    if method == "compress":
        return _native(source, config)
    if method == "compressed-tensors":
        return _compressed_tensors(source, config)
    if method == "bitsandbytes":
        return _bitsandbytes(source)
    raise UserError(
        f"{source.path} is quantized by '{method}', which is not read here: compressed-tensors, bitsandbytes (NF4), "
        "native and dense are"
    )


def _native(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    if config.get("version") != VERSION:
        raise UserError(
            f"{source.path} is of native version {config.get('version')}; this program reads {VERSION}"
        )
    result = {}
    for name, entry in config["weights"].items():
        try:
            layout = layout_from_json(entry["layout"])
            shape = (int(entry["shape"][0]), int(entry["shape"][1]))
            suffixes = layout.specs(shape)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{source.path / 'config.json'}: the entry of {name} cannot be read: {error}"
            ) from error
        result[name] = PackedWeight(layout, shape, disk_names(name, suffixes, entry.get("input_from")))
    return result


def _compressed_tensors(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    groups = list(config.get("config_groups", {}).values())
    result = {}
    for tensor, info in source.headers.items():
        if not tensor.endswith(SCALE):
            continue
        name = tensor.removesuffix(SCALE)
        arguments = _group_of(source, name, groups, config)
        if f"{name}{PACKED}" in source.headers:
            layout: Layout = PackedInteger(
                arguments["num_bits"], _strategy(arguments), arguments.get("symmetric", True), info.dtype
            )
            out, columns = (int(size) for size in source.read(f"{name}.weight_shape"))
        else:
            layout = PlainInteger(arguments["num_bits"], _strategy(arguments), info.dtype)
            out, columns = source.headers[f"{name}.weight"].shape
        names = {suffix: f"{name}.{suffix}" for suffix in layout.specs((out, columns))}
        result[name] = PackedWeight(layout, (out, columns), names)
    return result


def _bitsandbytes(source: Source) -> dict[str, PackedWeight]:
    result = {}
    state = f".{BITSANDBYTES['weight_state']}"
    for tensor in source.headers:
        if not tensor.endswith(state):
            continue
        name = tensor.removesuffix(state)
        try:
            data = json.loads(bytes(source.read(tensor).tolist()))
            if "nested_offset" in data:
                raise ValueError("its scales are quantized once more, which is not read here")
            layout = layout_from_json({"name": data["quant_type"], "block": data["blocksize"], **data})
            shape = (int(data["shape"][0]), int(data["shape"][1]))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{source.path}: {name} of bitsandbytes cannot be read: {error}") from error
        names = {suffix: f"{name}.{BITSANDBYTES[suffix]}" for suffix in layout.specs(shape)}
        result[name] = PackedWeight(layout, shape, names)
    if not result and any(
        name.endswith((".SCB", ".quant_state.bitsandbytes__fp4")) for name in source.headers
    ):
        raise UserError(f"{source.path} holds INT8 or FP4 of bitsandbytes, which is not read here: NF4 is")
    return result


def _group_of(
    source: Source, name: str, groups: list[Mapping[str, Any]], config: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The weight arguments of the group that targets ``name``: by exact name first, then by pattern, then by class."""
    named = [group for group in groups if name in group["targets"]]
    matched = [group for group in groups if any(_matches(target, name) for target in group["targets"])]
    by_class = [group for group in groups if "Linear" in group["targets"]]
    for group in (*named, *matched, *by_class, *groups[:1]):
        arguments: Mapping[str, Any] = group["weights"]
        form = group.get("format") or config.get("format")
        if form not in ("pack-quantized", "int-quantized") or arguments.get("type", "int") != "int":
            raise UserError(f"{source.path}: {name} is stored as '{form}', which is not read here yet")
        return arguments
    raise UserError(f"{source.path / 'config.json'} has no config group for {name}")


def _matches(target: str, name: str) -> bool:
    return target.startswith("re:") and re.match(target[3:], name) is not None


def _strategy(arguments: Mapping[str, Any]) -> Any:
    strategy = arguments.get("strategy")
    if strategy == "group" or (strategy is None and arguments.get("group_size")):
        return arguments["group_size"]
    return strategy or "tensor"


def decoder(source: Source, packed: Mapping[str, PackedWeight], dtype: torch.dtype) -> Any:
    """What :class:`~compress.models.skeleton.Skeleton` asks for a weight by name: the dense one, or ``None``."""

    def decode(name: str) -> Tensor | None:
        weight = packed.get(name)
        return None if weight is None else weight.layout.decode(weight.tensors(source), weight.shape, dtype)

    return decode
