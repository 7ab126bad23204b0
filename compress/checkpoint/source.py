"""A checkpoint to read from: lazy, memory-mapped, safetensors only. No pickle is ever opened."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint import files as disk_files
from compress.checkpoint.companions import companions, left_out_note
from compress.checkpoint.files import sha256_of
from compress.checkpoint.gguf_tensors import gguf_tensors
from compress.checkpoint.headers import TensorInfo, read_header
from compress.errors import DamagedSourceError, UserError

_LOG = logging.getLogger(__name__)

__all__ = ["Source", "TensorInfo", "check_finite", "open_source", "sha256_of"]

_QUANTIZATION_FILES = {
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "recipe.yaml",
    "compress.json",
    "report.html",
}
"""What tells how a checkpoint was quantized: untrue beside other weights."""
_CHUNK = 1 << 22  # elements that check_finite looks at in one go


@dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint's folder. Nothing but the headers is read until a tensor is asked for.

    name: what the user called it. path: its folder. config: `config.json` as it is. headers: every tensor
    on disk. changes: what of `config` differs from the file, for a model whose shape was edited; dropped:
    the decoder blocks, by their numbers on disk, that were left out of it; width_pruned: what else was left out, as
    plain data; unread: tensors whose values were fitted anew and are not known here. rotation: the rotations of its
    residual stream and values, as plain data. stored_as: the quantized form that the files hold where the headers show what
    it decodes to; empty for a dense checkpoint.
    """

    name: str
    path: Path
    config: dict[str, Any]
    headers: Mapping[str, TensorInfo]
    files: tuple[Path, ...]
    trust_remote_code: bool
    _real_root: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()
    width_pruned: Mapping[str, Any] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    rotation: Mapping[str, Any] = field(default_factory=dict)
    stored_as: str = ""

    @classmethod
    def open_source(
        cls, name_or_path: str | Path, *, trust_remote_code: bool = False, revision: str | None = None
    ) -> Source:
        """Opens a folder, or a name on the hub (downloaded into its cache), and checks all of its headers.

        Raises: `UserError` for whatever is wrong with it.
        """
        _LOG.info("reading the headers of %s", name_or_path)
        path, real_root = disk_files.resolve(name_or_path, revision)
        files, index = disk_files.weight_files(path, real_root)
        config = disk_files.read_json(path, "config.json", real_root)
        packed = files[0].name == disk_files.GGUF
        headers = gguf_tensors(path, config) if packed else _collect(path, files, index)
        return cls(str(name_or_path), path, config, headers, tuple(files), trust_remote_code, real_root)

    def read(self, name: str) -> Tensor:
        """The tensor in its own dtype and shape: a view of a private mapping, whose pages are read when they are
        used and given back with the tensor. Nothing written into it reaches the file.

        A tensor whose place in the file is not aligned is copied. Raises: `UserError` if the file has changed.
        """
        info = self._info(name)
        if info.decode is not None:
            return info.decode()
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        area, start = self._map(info)
        if info.offset % info.dtype.itemsize:
            flat = torch.frombuffer(area, dtype=torch.uint8, offset=start, count=info.nbytes)
            return flat.clone().view(info.dtype).view(info.shape)
        return torch.frombuffer(area, dtype=info.dtype, offset=start, count=info.numel).view(info.shape)

    def reference(self, name: str) -> Tensor:
        """The tensor as the files have it, without what was fitted anew: what a written weight is held against."""
        return self.read(name)

    @property
    def rotated_inputs(self) -> frozenset[str]:
        """Parameters that read vectors of a space that was rotated."""
        return frozenset()

    @property
    def without_reference(self) -> frozenset[str]:
        """Tensors whose values are not known here at all: nothing that was written can be held against them."""
        return frozenset()

    def raw_bytes(self, name: str) -> memoryview:
        """The tensor's bytes as they are on disk, or as they are decoded, for passing it through unchanged."""
        info = self._info(name)
        if info.decode is not None:
            flat: Any = info.decode().contiguous().view(-1).view(torch.uint8).numpy()
            return memoryview(flat)
        if info.nbytes == 0:
            return memoryview(b"")
        area, start = self._map(info)
        return memoryview(area)[start : start + info.nbytes]

    def on_disk(self, name: str) -> tuple[TensorInfo, ...]:
        """What is read of the files for a tensor: itself, or the parts that it is decoded from."""
        info = self._info(name)
        return (info,) if info.decode is None else info.parts

    def extra_files(self) -> list[Path]:
        """Files to carry over beside the weights (see `compress.checkpoint.companions`)."""
        found = companions(self.path, self._real_root, self.files).carried
        return [file for file in found if not self.stored_as or file.name not in _QUANTIZATION_FILES]

    def left_out(self) -> str:
        """A sentence about files that are not carried over, other weights as a rule; empty if there are none."""
        return left_out_note(self.path, companions(self.path, self._real_root, self.files).left_out)

    @property
    def real_root(self) -> Path:
        """The folder that the real paths of its files lie in."""
        return self._real_root

    def sha256(self) -> dict[str, str]:
        """The SHA-256 of each weight file, by its name."""
        return {file.name: sha256_of(file) for file in self.files}

    def _info(self, name: str) -> TensorInfo:
        if name not in self.headers:
            raise UserError(f"{self.path} holds no tensor {name}.")
        return self.headers[name]

    def _map(self, info: TensorInfo) -> tuple[mmap.mmap, int]:
        """The pages that a tensor lies on, and where it starts in them. A mapping of its own for each tensor: it goes
        when the tensor goes, and a file larger than the memory is no trouble."""
        page_start = info.offset - info.offset % mmap.ALLOCATIONGRANULARITY
        start = info.offset - page_start
        try:
            with info.file.open("rb") as file:
                area = mmap.mmap(
                    file.fileno(), start + info.nbytes, access=mmap.ACCESS_COPY, offset=page_start
                )
        except (OSError, ValueError) as error:
            raise UserError(f"{info.file} cannot be read any more ({error}); was it changed?") from None
        return area, start


open_source = Source.open_source


def _collect(path: Path, files: list[Path], index: dict[str, str] | None) -> dict[str, TensorInfo]:
    headers: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in headers:
                raise UserError(
                    f"Tensor {name} is in both {headers[name].file.name} and {file.name} of {path}."
                )
            headers[name] = info
    for name, file_name in (index or {}).items():
        if name not in headers or headers[name].file != path / file_name:
            raise UserError(
                f"{path / disk_files.INDEX} places tensor {name} in {file_name}, which does not hold it."
            )
    return headers


def check_finite(tensor: Tensor, name: str) -> None:
    """Raises `DamagedSourceError` naming the tensor if it holds a NaN or an infinity. Allocates little."""
    if not tensor.is_floating_point():
        return
    for chunk in tensor.reshape(-1).split(_CHUNK) if tensor.is_contiguous() else tensor:
        chunk = chunk if chunk.dtype.itemsize > 1 else chunk.float()
        if not bool(torch.isfinite(chunk).all()):
            raise DamagedSourceError(
                f"Tensor {name} holds NaN or infinite values; the checkpoint is damaged or diverged."
            )
