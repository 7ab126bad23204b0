"""What is in a checkpoint, from its headers alone: which weights, in which form, at how many bits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from compress.checkpoint.source import Source, TensorInfo
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.report import Report

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}


@dataclass(frozen=True)
class Stored:
    """One weight of the model, or one tensor that belongs to none.

    Attributes:
        name: logical module name of a packed weight, else the tensor's own name.
        kind: "linear", "conv1d", "expert", "embedding", "head", "vector" (norms and biases) or "other".
        form: how it is stored: "int4 group 128", "packed", "bf16".
        shape: the weight's own, `(out, in)`, however it is packed.
        nbytes: of all its tensors.
    """

    name: str
    kind: str
    form: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Total:
    """All that is stored of one kind in one form."""

    kind: str
    form: str
    count: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class _Packed:
    form: str
    shape: tuple[int, ...]


def contents(source: Source) -> list[Stored]:
    """Return everything that a checkpoint stores, in the order of its files.

    Raises:
        UserError: the folder's `compress.json` is there but cannot be read.
    """
    packed = _packed_by_us(source) or dict(_packed_by_others(source))
    kinds = _kinds(source, packed)
    nbytes: dict[str, int] = defaultdict(int)
    for name, info in source.headers.items():
        nbytes[_owner(name, packed)] += info.nbytes
    return [_stored(name, size, source, packed, kinds) for name, size in nbytes.items() if size]


def totals(stored: Iterable[Stored]) -> list[Total]:
    """Return sums by kind and form, the largest first."""
    groups: dict[tuple[str, str], list[Stored]] = defaultdict(list)
    for one in stored:
        groups[one.kind, one.form].append(one)
    sums = [
        Total(kind, form, len(group), sum(one.parameters for one in group), sum(one.nbytes for one in group))
        for (kind, form), group in groups.items()
    ]
    return sorted(sums, key=lambda total: -total.nbytes)


def _packed_by_us(source: Source) -> dict[str, _Packed]:
    file = source.path / "compress.json"
    if not file.is_file():
        return {}
    report = Report.read(file)
    weights = report.weights if report.format.name != "dense" else ()
    return {weight.name: _Packed(weight.structure, weight.shape) for weight in weights}


def _packed_by_others(source: Source) -> Iterator[tuple[str, _Packed]]:
    """Weights that are told by the tensors that stand beside each other, as compressed-tensors names them."""
    for name, info in source.headers.items():
        module, _, suffix = name.rpartition(".")
        if suffix == "weight_packed":
            yield module, _Packed("packed", _unpacked_shape(source, module, info))
        elif suffix == "weight" and f"{module}.weight_scale" in source.headers:
            yield module, _Packed(_dtype(info), info.shape)


def _unpacked_shape(source: Source, module: str, info: TensorInfo) -> tuple[int, ...]:
    name = f"{module}.weight_shape"
    if name in source.headers:
        return tuple(source.read(name).tolist())
    return (*info.shape[:-1], info.shape[-1] * 2)  # 4-bit floats have no shape tensor: two numbers to a byte


def _kinds(source: Source, packed: Mapping[str, _Packed]) -> dict[str, str]:
    """Name of a packed weight, or of a tensor → kind, found from the model as `compress plan` finds it."""
    try:
        skeleton = open_skeleton(source, supplied={name: weight.shape for name, weight in packed.items()})
    except UserError:
        return {}  # a model that transformers does not know: its tensors can be counted all the same
    kinds: dict[str, str] = {}
    for view in skeleton.views:
        kinds |= dict.fromkeys((view.name, *view.sources), view.kind)
    return kinds


def _owner(tensor: str, packed: Mapping[str, _Packed]) -> str:
    """The packed weight that a tensor is part of, or the tensor itself."""
    module, _, suffix = tensor.rpartition(".")
    return module if module in packed and suffix != "bias" else tensor


def _stored(
    name: str, nbytes: int, source: Source, packed: Mapping[str, _Packed], kinds: Mapping[str, str]
) -> Stored:
    if name in packed:
        return Stored(name, kinds.get(name, "other"), packed[name].form, packed[name].shape, nbytes)
    info = source.headers[name]
    kind = "vector" if len(info.shape) < 2 else kinds.get(name, "other")
    return Stored(name, kind, _dtype(info), info.shape, nbytes)


def _dtype(info: TensorInfo) -> str:
    return DTYPES.get(info.dtype, str(info.dtype).removeprefix("torch."))
