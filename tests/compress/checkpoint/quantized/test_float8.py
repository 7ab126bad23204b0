"""FP8 with its scales, against transformers' own way to undo it and against sums in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from compress.checkpoint.quantized.read import decode_source
from compress.checkpoint.source import Source
from compress.errors import UserError

WriteStored = Callable[..., Source]
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32]}


def blocks(weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """FP8 codes and the scale of every block, as DeepSeek's checkpoints have them."""
    out, inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -inputs % columns, 0, -out % rows))
    tiles = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
    scale = tiles.abs().amax((1, 3)) / 448
    spread = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:out, :inputs]
    return (weight / spread).to(torch.float8_e4m3fn), scale


def decoded(write: WriteStored, tensors: dict[str, Tensor], config: dict[str, Any] = FP8) -> Source:
    return decode_source(write(tensors, config, dtype="float32"), config)


@pytest.mark.parametrize("shape", [(64, 96), (32, 32)], ids=str)
def test_blocks_as_transformers_undoes_them(write_stored: WriteStored, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    codes, scale = blocks(torch.randn(shape), 32, 32)
    source = decoded(write_stored, {"a.weight": codes, "a.weight_scale_inv": scale})
    assert set(source.headers) == {"a.weight"}
    expected = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
    torch.testing.assert_close(source.read("a.weight"), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((48, 80), (2, 3)),
        ((48, 64), (48, 1)),
        ((48, 64), (1, 1)),
        ((48, 64), (48,)),
        ((48, 64), (1,)),
        ((48, 64), ()),
    ],
    ids=str,
)
def test_every_grid_of_scales(
    write_stored: WriteStored, shape: tuple[int, int], grid: tuple[int, ...]
) -> None:
    """Blocks that do not divide, rows, and the whole tensor."""
    torch.manual_seed(0)
    codes = torch.randn(shape).to(torch.float8_e4m3fn)
    scale = torch.rand(grid) + 0.5
    rows, columns = (32, 32) if grid == (2, 3) else (1, shape[1]) if grid[:1] == (48,) else shape
    source = decoded(write_stored, {"a.weight": codes, "a.weight_scale_inv": scale})
    table = scale.double().reshape(-(-shape[0] // rows), -(-shape[1] // columns))
    expected = torch.empty(shape, dtype=torch.float64)
    for i in range(shape[0]):
        for j in range(shape[1]):
            expected[i, j] = codes[i, j].double() * table[i // rows, j // columns]
    torch.testing.assert_close(source.read("a.weight").double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("end", ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"])
def test_names_of_scales(write_stored: WriteStored, end: str) -> None:
    codes = torch.ones(4, 4).to(torch.float8_e4m3fn)
    source = decoded(
        write_stored, {"a.weight": codes, f"a.{end}": torch.tensor(0.5), "a.input_scale": torch.ones(1)}
    )
    assert set(source.headers) == {"a.weight"}
    assert torch.equal(source.read("a.weight"), torch.full((4, 4), 0.5))


def test_fused_experts(write_stored: WriteStored) -> None:
    torch.manual_seed(0)
    pairs = [blocks(torch.randn(64, 32), 32, 32) for _ in range(3)]
    codes = torch.stack([c.view(torch.uint8) for c, _ in pairs]).view(torch.float8_e4m3fn)
    scales = torch.stack([s for _, s in pairs])
    source = decoded(write_stored, {"e.gate_up_proj": codes, "e.gate_up_proj_scale_inv": scales})
    found = source.read("e.gate_up_proj")
    for index, (own, scale) in enumerate(pairs):
        expected = Fp8Dequantize(None)._dequantize_one(own, scale, torch.float32)
        assert torch.equal(found[index], expected)


def test_exponents_as_scales_and_four_bit_experts(write_stored: WriteStored) -> None:
    """MXFP8, whose scales are exponents in bytes, and FP4 beside FP8, two numbers in a byte."""
    torch.manual_seed(0)
    codes, exponents = (
        torch.randn(8, 64).to(torch.float8_e4m3fn),
        torch.randint(120, 130, (8, 2), dtype=torch.uint8),
    )
    four, fine = (
        torch.randint(-128, 127, (8, 32), dtype=torch.int8),
        torch.randint(120, 130, (8, 2), dtype=torch.uint8),
    )
    tensors = {"a.weight": codes, "a.weight_scale_inv": exponents, "b.weight": four, "b.scale": fine}
    source = decoded(write_stored, tensors, {"quant_method": "mxfp8"})
    for name, stored, scale in (("a.weight", codes, exponents), ("b.weight", four, fine)):
        expected = Fp8Dequantize(None)._dequantize_one(stored, scale, torch.float32)
        assert torch.equal(source.read(name), expected), name


def test_large_matrices_are_decoded_in_strips(
    write_stored: WriteStored, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    codes, scale = blocks(torch.randn(96, 64), 32, 32)
    source = decoded(write_stored, {"a.weight": codes, "a.weight_scale_inv": scale})
    whole = source.read("a.weight")
    monkeypatch.setattr("compress.checkpoint.quantized.values._STRIP", 1)
    assert torch.equal(source.read("a.weight"), whole)


def test_no_scale_or_one_that_does_not_fit(write_stored: WriteStored) -> None:
    codes = torch.ones(64, 64).to(torch.float8_e4m3fn)
    with pytest.raises(UserError, match="no scale beside it"):
        decoded(write_stored, {"a.weight": codes, "b.weight_scale_inv": torch.ones(2, 2)})
    with pytest.raises(UserError, match="does not fit"):
        decoded(write_stored, {"a.weight": codes, "a.weight_scale_inv": torch.ones(3, 5)})
