"""What is in a checkpoint, from its headers alone: which weights, in which form, at how many bits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from compress.checkpoint.source import Source, TensorInfo
from compress.errors import UserError
from compress.formats.gguf.foreign import StoredTensor
from compress.formats.packed_weight import PackedWeight
from compress.formats.read import packed_weights
from compress.models.skeleton import open_skeleton
from compress.report.assemble import describe

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}

GGUF_KINDS = {"token_embd.weight": "embedding", "output.weight": "head"}
"""Matrices of a GGUF file that are not in a block."""


@dataclass(frozen=True)
class Stored:
    """One weight of the model, or one tensor that belongs to none.

    Attributes:
        name: logical module name of a packed weight, else the tensor's own name.
        kind: "linear", "conv1d", "expert", "embedding", "head", "vector" (norms and biases) or "other".
        form: how it is stored: "int4 group 128", "bf16".
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


def contents(source: Source) -> list[Stored]:
    """Return everything that a checkpoint stores, in the order of its files.

    A checkpoint that is packed in a form not known here, or whose model transformers does not know, is listed tensor
    by tensor.
    """
    packed = _packed(source)
    kinds = _kinds(source, packed)
    owners = {tensor: name for name, weight in packed.items() for tensor in weight.names.values()}
    nbytes: dict[str, int] = defaultdict(int)
    for tensor, info in source.headers.items():
        nbytes[owners.get(tensor, tensor)] += info.nbytes
    return [_stored(name, size, source, packed, kinds) for name, size in nbytes.items() if size]


def gguf_contents(tensors: Iterable[StoredTensor]) -> list[Stored]:
    """Return the tensors of a GGUF file that another program wrote, by the names that they have in it."""
    return [
        Stored(tensor.name, _gguf_kind(tensor), _gguf_form(tensor.type), tensor.shape, tensor.nbytes)
        for tensor in tensors
    ]


def _gguf_kind(tensor: StoredTensor) -> str:
    if len(tensor.shape) != 2:
        return "vector" if len(tensor.shape) < 2 else "expert"
    return GGUF_KINDS.get(tensor.name, "linear")


def _gguf_form(kind: str) -> str:
    return kind.replace("F", "fp") if kind in {"F16", "F32", "F64"} else kind.lower()


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


def _packed(source: Source) -> Mapping[str, PackedWeight]:
    try:
        return packed_weights(source)
    except UserError:
        return {}


def _kinds(source: Source, packed: Mapping[str, PackedWeight]) -> dict[str, str]:
    """Name of a packed weight, or of a tensor → kind, found from the model as `compress plan` finds it."""
    try:
        skeleton = open_skeleton(source, supplied={name: weight.shape for name, weight in packed.items()})
    except UserError:
        return {}
    return {name: view.kind for view in skeleton.views for name in (view.name, *view.sources)}


def _stored(
    name: str, nbytes: int, source: Source, packed: Mapping[str, PackedWeight], kinds: Mapping[str, str]
) -> Stored:
    if name in packed:
        weight = packed[name]
        return Stored(
            name, kinds.get(name, "other"), describe(weight.layout, weight.activations), weight.shape, nbytes
        )
    info = source.headers[name]
    kind = "vector" if len(info.shape) < 2 else kinds.get(name, "other")
    return Stored(name, kind, _dtype(info), info.shape, nbytes)


def _dtype(info: TensorInfo) -> str:
    return DTYPES.get(info.dtype, str(info.dtype).removeprefix("torch."))
