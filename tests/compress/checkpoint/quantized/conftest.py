"""Small quantized checkpoints, written tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from compress.checkpoint.source import Source, open_source

WriteStored = Callable[..., Source]


@pytest.fixture
def write_stored(tmp_path: Path) -> WriteStored:
    """``write_stored(tensors, quantization, **config)`` → the source as stored, with no model behind it."""

    def write(tensors: Mapping[str, Tensor], quantization: Mapping[str, Any], **config: Any) -> Source:
        folder = tmp_path / "stored"
        folder.mkdir(exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors"
        )
        text = json.dumps({"model_type": "llama", **config, "quantization_config": dict(quantization)})
        (folder / "config.json").write_text(text)
        return open_source(folder)

    return write
