"""Files beside the weights: which go with the model, and which are other weights and are left out of the output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from compress.checkpoint.files import INDEX

# Weights in other formats; pickles among them are never opened and never carried over.
_OTHER_WEIGHTS = {
    ".bin",
    ".ckpt",
    ".engine",
    ".ggml",
    ".gguf",
    ".h5",
    ".keras",
    ".llamafile",
    ".mlmodel",
    ".msgpack",
    ".nemo",
    ".npy",
    ".npz",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".pickle",
    ".pkl",
    ".plan",
    ".pt",
    ".pth",
    ".pte",
    ".safetensors",
    ".task",
    ".tflite",
}
_OTHER_MODELS = {"coreml", "gguf", "mlx", "onnx", "openvino", "original", "tensorrt", "tflite"}
"""Folders in which hubs keep the same model for other programs."""

_ADAPTER = "adapter_"
"""Files of an adapter that is not merged: its config beside the output would make transformers look for the adapter."""

_TEXT = {".json", ".jinja", ".md", ".model", ".py", ".tiktoken", ".txt", ".vocab"}
_LARGE = 64 << 20
"""Bytes from which a file of no known kind is taken for weights in a format that is not known here."""


@dataclass(frozen=True)
class Companions:
    """The files of a checkpoint beside its weights, their index and ``config.json``.

    Attributes:
        carried: what goes with the model: tokenizer, generation config, chat template, licence, code, and so on.
        left_out: other weights: of other formats, stale shards, adapters.
    """

    carried: tuple[Path, ...]
    left_out: tuple[Path, ...]


def companions(path: Path, real_root: Path, weights: Sequence[Path]) -> Companions:
    """Sort the files of a checkpoint's folder.

    Hidden files and links that lead outside of the folder are in neither list.

    Args:
        path: the folder.
        real_root: the folder that real paths must lie in.
        weights: the files that hold the model's tensors.
    """
    known = {*weights, path / "config.json", path / INDEX}
    modules = _module_folders(path)
    carried: list[Path] = []
    left_out: list[Path] = []
    for file in sorted(_files(path)):
        relative = file.relative_to(path)
        if file in known or not file.resolve().is_relative_to(real_root):
            continue
        part_of_module = len(relative.parts) > 1 and relative.parts[0] in modules
        (left_out if _is_other_model(file, relative) and not part_of_module else carried).append(file)
    return Companions(tuple(carried), tuple(left_out))


def left_out_note(path: Path, left_out: Sequence[Path]) -> str:
    """A sentence about files that are not carried over, with their size; empty if there are none."""
    if not left_out:
        return ""
    names = [str(file.relative_to(path)) for file in left_out]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    megabytes = sum(file.stat().st_size for file in left_out) / 1e6
    return f"Left out of the copy, since they are not weights of this model: {shown} ({megabytes:.1f} MB)."


def _files(path: Path) -> Iterator[Path]:
    for file in path.rglob("*"):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
            yield file


def _is_other_model(file: Path, relative: PurePath) -> bool:
    suffix = file.suffix.lower()
    if suffix in _OTHER_WEIGHTS or file.name.endswith((".index.json", ".onnx.data")):
        return True
    if file.name.startswith(_ADAPTER) or _OTHER_MODELS.intersection(map(str.lower, relative.parts[:-1])):
        return True
    return suffix not in _TEXT and file.stat().st_size >= _LARGE


def _module_folders(path: Path) -> set[str]:
    """Folders that ``modules.json`` names: what sentence-transformers puts after the model, weights of its own included."""
    try:
        modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
        return {str(module["path"]).split("/")[0] for module in modules} - {""}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
