"""The tensors of a GGUF file under the names and in the shapes that the Hugging Face checkpoint had."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from compress_kernels.layouts import layout_from_json
from compress_kernels.layouts.dtypes import dtype_from_name
from torch import Tensor

from compress.errors import UserError

from .gguf import read_gguf_header
from .headers import TensorInfo
from .tensor_edits import Edit

VERSION = 1


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file holds it.

    Attributes:
        raw: where it lies, and in what dtype and shape.
        expert: which matrix of a stack it is.
        edit: how it was changed on the way into the file.
        transposed: the checkpoint has it as ``[in, out]``.
        dtype: the checkpoint's.
    """

    raw: TensorInfo
    expert: int | None
    edit: Edit
    transposed: bool
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The tensor as the checkpoint has it; the rows of a packed one in the checkpoint's order."""
        raw = _mapped(self.raw)
        rows = self.edit.from_gguf(raw if self.expert is None else raw[self.expert])
        return (rows.T if self.transposed else rows).to(self.dtype).contiguous()

    def info(self, shape: tuple[int, ...]) -> TensorInfo:
        """What a header says of it, in the checkpoint's ``shape``."""
        nbytes = torch.Size(shape).numel() * self.dtype.itemsize
        return TensorInfo(self.dtype, shape, nbytes, self.raw.file, self.raw.offset, self.read, (self.raw,))


def gguf_tensors(path: Path, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Name in the Hugging Face checkpoint → tensor, for the GGUF file in the folder ``path``.

    ``config`` is the folder's ``config.json``, which says how the file came about.

    Raises:
        UserError: the file is damaged, or does not hold what the configuration says.
    """
    table = config.get("quantization_config") or {}
    if table.get("quant_method") != "gguf":
        raise UserError(
            f"{path} holds a GGUF file that compress did not write: give the checkpoint that it was made from"
        )
    if table.get("version") != VERSION:
        raise UserError(
            f"{path} is a GGUF folder of version {table.get('version')}; this program reads version {VERSION}"
        )
    try:
        return _tensors(path / str(table["file"]), table)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path / 'config.json'}: its table of GGUF tensors cannot be read: {error}"
        ) from error


def _tensors(file: Path, table: Mapping[str, Any]) -> dict[str, TensorInfo]:
    header = read_gguf_header(file)
    raw = {
        tensor.name: TensorInfo(
            tensor.spec.dtype, tensor.spec.shape, tensor.spec.nbytes, file, header.offsets[tensor.name]
        )
        for tensor in header.tensors
    }
    found = {}
    for name, entry in table["weights"].items():
        place = raw[entry["tensor"]]
        (spec,) = layout_from_json(entry["layout"]).specs((entry["shape"][0], entry["shape"][1])).values()
        if place.shape[-2:] != spec.shape or place.dtype != spec.dtype:
            raise ValueError(
                f"{entry['tensor']} is not the {spec.dtype} {list(spec.shape)} that {name} should be"
            )
        dense = spec.dtype != torch.uint8
        dtype = dtype_from_name(entry["dtype"]) if dense else spec.dtype
        transposed = bool(entry["transposed"]) and dense
        stored = StoredTensor(place, entry["expert"], Edit.from_json(entry["edit"]), transposed, dtype)
        found[f"{name}.weight"] = stored.info(spec.shape[::-1] if transposed else spec.shape)
    for disk, entries in table["vectors"].items():
        found[disk] = _vector(raw, entries)
    return found


def _vector(raw: Mapping[str, TensorInfo], entries: Sequence[Mapping[str, Any]]) -> TensorInfo:
    """A tensor of the checkpoint from the one or, interleaved, the two that the file holds of it."""
    dtype = dtype_from_name(entries[0]["dtype"])
    parts = [
        StoredTensor(raw[entry["tensor"]], None, Edit.from_json(entry["edit"]), False, dtype)
        for entry in sorted(entries, key=lambda entry: entry["half"] or 0)
    ]
    if len(parts) == 1:
        return parts[0].info(parts[0].raw.shape)
    *outer, last = parts[0].raw.shape
    whole = parts[0].info((*outer, last * len(parts)))
    return replace(
        whole,
        decode=lambda: torch.stack([part.read() for part in parts], -1).flatten(-2),
        parts=tuple(part.raw for part in parts),
    )


def _mapped(info: TensorInfo) -> Tensor:
    """A tensor of the file, its pages read when they are used."""
    start = info.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        with info.file.open("rb") as file:
            area = mmap.mmap(
                file.fileno(), info.offset - start + info.nbytes, access=mmap.ACCESS_COPY, offset=start
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{info.file} cannot be read any more ({error}); was it changed?") from None
    flat = torch.frombuffer(area, dtype=info.dtype, offset=info.offset - start, count=info.numel)
    return flat.view(info.shape)
