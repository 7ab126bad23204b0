"""GGUF files that other programs wrote, read as the Hugging Face checkpoints that they were made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from compress.checkpoint.files import INDEX, SINGLE
from compress.checkpoint.headers import TensorInfo
from compress.checkpoint.quantized.overlay import without_quantization
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.base import Facts
from compress.models.build import build_on_meta
from compress.models.skeleton import Skeleton, open_skeleton
from compress.models.views import WeightView
from compress.system.scratch import kept_folder

from .placement import Place, Placement, Vector, place

_HEAD = "output.weight"


def foreign_gguf(name_or_path: str | Path) -> Path | None:
    """The GGUF file that is meant: the path of one, or the only one in a folder without other weights that we did not write."""
    path = Path(str(name_or_path)).expanduser()
    if os.path.isfile(path) and path.suffix.lower() == ".gguf":
        return path
    if not os.path.isdir(path) or (path / SINGLE).exists() or (path / INDEX).exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise UserError(f"{path} holds {len(files)} GGUF files: give the path of one of them.")
    return files[0] if files and not _ours(path) else None


def open_foreign_gguf(file: Path, *, trust_remote_code: bool = False) -> Source:
    """Open a GGUF file as a dense source.

    Configuration and tokenizer come from the folder of the file if it has a ``config.json``; else they are made from the file's
    metadata, by transformers, in a folder that goes when the source goes.

    Raises:
        UserError: the file is damaged, or of an architecture that is not read here.
    """
    reader = _reader(file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    keeper, folder = _folder(file)
    config = without_quantization(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    dtype = _dtype(config, stored)
    outline = Source(str(file), folder, config, {}, (file,), trust_remote_code, folder.resolve())
    model = build_on_meta(replace(outline, stored_as="GGUF"))
    headers = {
        name: TensorInfo(dtype, tuple(t.shape), t.numel() * dtype.itemsize, file, 0)
        for name, t in model.state_dict().items()
        if not (_HEAD not in stored and _is_tied_head(model, name))
    }
    skeleton = open_skeleton(replace(outline, headers=headers, stored_as="GGUF"))
    placement = place(_facts(skeleton))
    found: dict[str, TensorInfo] = {}
    types = sorted({t.tensor_type.name for t in reader.tensors if len(t.shape) > 1})
    for disk, info in headers.items():
        decode = _decoder(file, disk, info, skeleton, placement, stored, keeper)
        found[disk] = replace(info, decode=decode)
    return replace(outline, headers=found, stored_as=f"GGUF ({', '.join(types)})")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a GGUF file lists it: ``shape`` as torch has it, the name of its type, and its bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int


def list_gguf(file: Path) -> tuple[str, list[StoredTensor]]:
    """The architecture that a GGUF file names, in llama.cpp's word, and its tensors; nothing is decoded.

    Raises:
        UserError: the file is damaged.
    """
    reader = _reader(file)
    field = reader.get_field("general.architecture")
    tensors = [
        StoredTensor(t.name, tuple(map(int, t.shape))[::-1], t.tensor_type.name, int(t.n_bytes))
        for t in reader.tensors
    ]
    return str(field.contents()) if field is not None else "", tensors


def _ours(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return (config.get("quantization_config") or {}).get("quant_method") == "gguf"
    except (OSError, ValueError, AttributeError):
        return False


def _reader(file: Path) -> Any:
    try:
        import gguf  # noqa: PLC0415 - optional
    except ImportError:
        raise UserError("reading GGUF needs the package 'gguf': pip install 'compress-llm[gguf]'") from None
    try:
        return gguf.GGUFReader(file)
    except Exception as error:  # the reader raises whatever numpy and struct do
        raise UserError(f"{file} is no GGUF file that can be read ({str(error)[:120]}).") from None


def _folder(file: Path) -> tuple[object, Path]:
    """What keeps the folder of configuration and tokenizer, and the folder."""
    if (file.parent / "config.json").is_file():
        return None, file.parent
    keeper = kept_folder(".gguf-")
    folder = keeper.path / file.stem
    folder.mkdir()
    try:
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
    except Exception as error:  # an architecture or a tokenizer that transformers does not read from GGUF
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"transformers cannot make a configuration and a tokenizer of {file.name} ({reason[:200]}): put the config.json "
            "and tokenizer files of the original model beside it."
        ) from None
    return keeper, folder


def _dtype(config: Mapping[str, Any], stored: Mapping[str, Any]) -> torch.dtype:
    said = config.get("dtype") or config.get("torch_dtype")
    dtype = getattr(torch, str(said).removeprefix("torch."), None)
    if isinstance(dtype, torch.dtype):
        return dtype
    kinds = {tensor.tensor_type.name for tensor in stored.values()}
    return torch.float16 if "F16" in kinds and "BF16" not in kinds else torch.bfloat16


def _is_tied_head(model: nn.Module, name: str) -> bool:
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return head is not None and any(
        module is head and name == f"{prefix}.weight" for prefix, module in model.named_modules()
    )


def _facts(skeleton: Skeleton) -> Facts:
    config = skeleton.model.config.get_text_config().to_dict()
    source = skeleton.source
    return Facts(
        source.headers, (), skeleton.views, skeleton.dtype, skeleton.pieces, config=config, folder=source.path
    )


def _decoder(
    file: Path,
    disk: str,
    info: TensorInfo,
    skeleton: Skeleton,
    placement: Placement,
    stored: Mapping[str, Any],
    keeper: object,
) -> Callable[[], Tensor]:
    """Reads the tensor ``disk`` out of the file; ``keeper`` lives as long as what is returned."""
    views = [view for view in skeleton.views if disk in view.sources]
    vectors = [(name, vector) for name, vector in placement.vectors.items() if vector.disk == disk]
    needed = [placement.weights[view.name].tensor for view in views] or [name for name, _ in vectors]
    if missing := [name for name in needed if name not in stored]:
        raise UserError(f"{file} holds no tensor {missing[0]}, which {disk} would be made of.")
    if not needed:
        raise UserError(f"{file}: nothing is known to hold {disk}.")

    def decode() -> Tensor:
        _ = keeper
        if views:
            result = torch.empty(info.shape, dtype=info.dtype)
            for view in views:
                _put(result, view, placement.weights[view.name], stored)
            return result
        return _vector(vectors, stored).view(info.shape).to(info.dtype)

    return decode


def _put(result: Tensor, view: WeightView, here: Place, stored: Mapping[str, Any]) -> None:
    values = _values(stored[here.tensor], here.expert)
    view.put(result, here.edit.from_gguf(values))


def _vector(vectors: list[tuple[str, Vector]], stored: Mapping[str, Any]) -> Tensor:
    parts = [
        vector.edit.from_gguf(_values(stored[name], None))
        for name, vector in sorted(vectors, key=lambda item: item[1].half or 0)
    ]
    return parts[0] if len(parts) == 1 else torch.stack(parts, -1).flatten(-2)


def _values(tensor: Any, expert: int | None) -> Tensor:
    """The numbers of a stored tensor, or of one matrix of a stack, in fp32."""
    import gguf  # noqa: PLC0415 - optional

    data = tensor.data if expert is None else tensor.data[expert]
    values = gguf.quants.dequantize(data, tensor.tensor_type)
    return torch.from_numpy(values.astype("float32", copy=True))
