"""The page that tells of the native form byte by byte: its own reader, run on what is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.layouts import layout_from_json
from safetensors.torch import load_file

from compress.api import compress
from compress.recipe.recipe import Recipe

PAGE = Path(__file__).parents[3] / "docs" / "native-form.md"

STEPS: dict[str, dict[str, Any]] = {
    "half": {"prune": {"sparsity": 0.5}, "solver": "wanda"},
    "half on a grid": {
        "prune": {"sparsity": 0.5},
        "quantize": {"bits": 3, "group_size": 16, "symmetric": False},
    },
    "two of four": {"prune": {"pattern": "2:4"}, "solver": "wanda"},
    "three of eight on a grid": {
        "prune": {"pattern": "3:8"},
        "quantize": {"bits": 4, "group_size": "channel"},
    },
    "low rank on a grid": {"lowrank": {"ratio": 0.6, "bits": 4}, "solver": "weighted_svd"},
    "with columns": {"lowrank": {"ratio": 0.6, "columns": 0.1}, "solver": "lost"},
    "nvfp4": {"quantize": {"type": "nvfp4"}},
    "mxfp4": {"quantize": {"type": "mxfp4"}},
    "mxfp8": {"quantize": {"type": "mxfp8"}},
    "fp8 by channel": {"quantize": {"type": "fp8"}},
    "fp8 by tensor": {"quantize": {"type": "fp8", "group_size": "tensor"}},
    "beside a grid": {
        "lowrank": {"rank": 4},
        "quantize": {"bits": 3, "group_size": "tensor", "symmetric": False},
        "solver": ["nearest", "eora"],
    },
}


def reader() -> dict[str, Any]:
    """What the page's Python block defines."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def given(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as the page's reader is given it: numpy has no bf16 and no E4M3."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8)
    return tensor.float() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("label", list(STEPS))
def test_the_page_reads_what_is_written(tiny_model: Callable[..., Path], tmp_path: Path, label: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What is written can be read. " * 100, encoding="utf-8")
    wanted = {"name": "test", "calibrate": {"samples": 2, "length": 24}, "format": "native"}
    recipe = Recipe.parse({**wanted, "steps": [STEPS[label]], "allow_split_groups": True})
    compress(tiny_model("llama"), recipe, tmp_path / "out", data=str(text), device="cpu", dtype="fp32")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    table = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["weights"]
    dense = reader()["dense"]
    assert table
    for name, entry in table.items():
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.") and value.numel()
        }
        shape = (entry["shape"][0], entry["shape"][1])
        renamed = {"weight_values": "weight"} if entry["layout"]["name"] == "float" else {}
        stored = {renamed.get(key, key): value for key, value in own.items()}
        expected = layout_from_json(entry["layout"]).decode(stored, shape, torch.float32)
        arrays = {key: given(tensor).numpy() for key, tensor in own.items()}
        found = torch.from_numpy(dense(entry["layout"], arrays, shape))
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6), name
