"""MLX's checkpoints as dense ones, against what mlx 0.32 dequantized itself (see `tests/kernels/layouts/test_affine.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.checkpoint.quantized.read import decode_source, method_of, quantization_of
from compress.checkpoint.source import Source
from compress.errors import UserError

WriteStored = Callable[..., Source]
THEIRS = load_file(Path(__file__).parents[3] / "kernels" / "layouts" / "mlx-0.32.safetensors")
LAYER = "model.layers.0.proj"
MODES: dict[str, dict[str, Any]] = {
    "affine.w3g64": {"bits": 3, "group_size": 64},
    "affine.w4g32": {"bits": 4, "group_size": 32, "mode": "affine"},
    "affine.w8g64": {"bits": 8, "group_size": 64, "mode": "affine"},
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    "nvfp4": {"bits": 4, "group_size": 16, "mode": "nvfp4"},
    "mxfp8": {"bits": 8, "group_size": 32, "mode": "mxfp8"},
}


def stored(name: str, layer: str = LAYER) -> dict[str, Tensor]:
    suffixes = ("weight", "scales", "biases")
    return {f"{layer}.{s}": THEIRS[f"{name}.{s}"] for s in suffixes if f"{name}.{s}" in THEIRS}


@pytest.mark.parametrize(("name", "config"), MODES.items(), ids=str)
def test_values_of_mlx(name: str, config: dict[str, Any], write_stored: WriteStored) -> None:
    source = write_stored({**stored(name), "norm.weight": torch.ones(4)}, config, dtype="float32")
    said = quantization_of(source)
    assert said is not None
    assert method_of(said) == "mlx"
    dense = decode_source(source, said)
    assert set(dense.headers) == {f"{LAYER}.weight", "norm.weight"}
    torch.testing.assert_close(
        dense.read(f"{LAYER}.weight"), THEIRS[f"{name}.expected"], rtol=1e-6, atol=1e-7
    )
    assert not {"quantization", "quantization_config"} & dense.config.keys()


def test_only_the_key_of_mlx(write_stored: WriteStored) -> None:
    """Old files of mlx_lm have ``quantization`` alone, and name the layers that differ, or that are dense."""
    second = "model.layers.1.proj"
    said = {"bits": 4, "group_size": 64, second: {"bits": 8, "group_size": 64}, "lm_head": False}
    tensors = {**stored("affine.w4g64"), **stored("affine.w8g64", second)}
    source = write_stored(tensors, {}, dtype="float32")
    source = replace(source, config={"model_type": "llama", "dtype": "float32", "quantization": said})
    config = quantization_of(source)
    assert config is not None
    dense = decode_source(source, config)
    for layer, name in ((LAYER, "affine.w4g64"), (second, "affine.w8g64")):
        torch.testing.assert_close(
            dense.read(f"{layer}.weight"), THEIRS[f"{name}.expected"], rtol=1e-6, atol=1e-7
        )


def test_bits_that_config_leaves_out(write_stored: WriteStored) -> None:
    source = write_stored(stored("affine.w6g64"), {"bits": 4, "group_size": 64}, dtype="float32")
    dense = decode_source(source, {"bits": 4, "group_size": 64})
    torch.testing.assert_close(
        dense.read(f"{LAYER}.weight"), THEIRS["affine.w6g64.expected"], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    ("change", "config", "sentence"),
    [
        ({"biases": (4, 1)}, {"bits": 4, "group_size": 64}, "do not fit each other"),
        ({}, {"bits": 4, "group_size": 48}, "groups of 32, 64 or 128"),
        (
            {"biases": None},
            {"bits": 4, "group_size": 64, "mode": "affine"},
            "mode 'affine', which is not read",
        ),
    ],
)
def test_what_does_not_fit(
    change: dict[str, Any], config: dict[str, Any], sentence: str, write_stored: WriteStored
) -> None:
    tensors = stored("affine.w4g64")
    for suffix, shape in change.items():
        del tensors[f"{LAYER}.{suffix}"]
        if shape is not None:
            tensors[f"{LAYER}.{suffix}"] = torch.zeros(shape, dtype=torch.bfloat16)
    source = write_stored(tensors, config)
    with pytest.raises(UserError, match=sentence):
        decode_source(source, config)
