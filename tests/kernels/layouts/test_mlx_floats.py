"""MLX's small floats against what mlx 0.32 packed and dequantized itself (see `test_affine.py` for how the file was made)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compress_kernels.layouts import MLXFloat, check, layout_from_json
from safetensors.torch import load_file

THEIRS = load_file(Path(__file__).parent / "mlx-0.32.safetensors")
SHAPE = (4, 128)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_the_bytes_and_values_of_mlx(mode: str) -> None:
    layout = MLXFloat(mode)
    tensors = {suffix: THEIRS[f"{mode}.{suffix}"] for suffix in ("weight", "scales")}
    check(layout, tensors, SHAPE)
    decoded = layout.decode(tensors, SHAPE, torch.float32)
    torch.testing.assert_close(decoded, THEIRS[f"{mode}.expected"], rtol=1e-6, atol=0)
    plain = layout.to_plain(tensors)
    check(layout.plain, plain, SHAPE)
    again = layout.of_plain(plain)
    assert {key: value.tolist() for key, value in again.items()} == {
        k: v.tolist() for k, v in tensors.items()
    }
    assert layout_from_json(layout.to_json()) == layout


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="no float mode 'fp8'"):
        MLXFloat("fp8")
    with pytest.raises(ValueError, match="do not fill whole"):
        MLXFloat("nvfp4").specs((4, 20))
    with pytest.raises(ValueError, match="not divide"):
        MLXFloat("mxfp4").specs((4, 40))
    plain = MLXFloat("nvfp4").to_plain({"weight": THEIRS["nvfp4.weight"], "scales": THEIRS["nvfp4.scales"]})
    plain["weight_global_scale"] = torch.tensor([2.0])
    with pytest.raises(ValueError, match="scale of the whole weight"):
        MLXFloat("nvfp4").of_plain(plain)
