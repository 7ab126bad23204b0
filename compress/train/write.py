"""What a training from scratch writes: a dense checkpoint, or one whose trained weights are packed in the native form."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoint.output import claim, disk_errors, empty, recover, take_name
from compress.formats.native import VERSION, disk_names
from compress.train.layers.base import Packed

RECORD = "training.json"


def save(
    model: PreTrainedModel,
    packed: Mapping[str, Packed],
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
    out: Path,
) -> None:
    """Write beside the target and rename, so that a folder of this name is whole.

    Args:
        model: the trained one, with dense weights where some are to be packed.
        packed: linear layer → its weight as it is stored.
        tokenizer: is written beside it.
        record: of the training, for ``training.json``.
        out: the folder.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    folder = out.with_name(out.name + ".partial")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with disk_errors(out, size):
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = claim(folder, out)
        try:
            recover(folder, out)
            empty(folder)
            model.save_pretrained(folder)
            if packed:
                _pack(folder, packed)
            tokenizer.save_pretrained(folder)
            (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            take_name(folder, out)
        finally:
            os.close(descriptor)


def _pack(folder: Path, packed: Mapping[str, Packed]) -> None:
    """Put packed tensors in the place of dense ones in a checkpoint that was just written."""
    names: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for name, one in packed.items():
            if (dense := tensors.get(f"{name}.weight")) is not None:
                tensors |= _tensors(name, one, dense.dtype)
        save_file(tensors, path, {"format": "pt"})
        names |= dict.fromkeys(tensors, path.name)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        facts = json.loads(index.read_text(encoding="utf-8"))
        _write_json(index, {**facts, "weight_map": names})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    table = {"quant_method": "compress", "version": VERSION, "weights": _table(packed)}
    _write_json(folder / "config.json", {**config, "quantization_config": table})


def _tensors(name: str, one: Packed, dtype: torch.dtype) -> dict[str, Tensor]:
    """A weight's tensors by their names on disk, and the one of no bytes that stops other loaders."""
    disk = disk_names(name, one.tensors, None)
    own = {disk[suffix]: tensor.cpu().contiguous() for suffix, tensor in one.tensors.items()}
    return own | {f"{name}.weight": torch.zeros(0, dtype=dtype)}


def _table(packed: Mapping[str, Packed]) -> dict[str, Any]:
    """The entries of ``config.json`` (``docs/native-form.md``)."""
    return {
        name: {
            "parameter": f"{name}.weight",
            "kind": "linear",
            "expert": None,
            "shape": list(one.shape),
            "layout": one.layout.to_json(),
            "sources": [f"{name}.weight"],
        }
        for name, one in packed.items()
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
