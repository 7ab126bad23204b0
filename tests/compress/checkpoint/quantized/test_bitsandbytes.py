"""4-bit and INT8 weights that bitsandbytes itself quantized and dequantizes."""

from __future__ import annotations

from collections.abc import Callable

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor

from compress.checkpoint.quantized.read import decode_source
from compress.checkpoint.source import Source
from compress.errors import UserError

WriteStored = Callable[..., Source]
CONFIG = {"quant_method": "bitsandbytes"}


def four_bits(weight: Tensor, kind: str, nested: bool, block: int = 64) -> tuple[dict[str, Tensor], Tensor]:
    codes, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=nested, blocksize=block)
    stored = {"a.weight": codes, **{f"a.weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    return stored, bnb.dequantize_4bit(codes, state)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_as_bitsandbytes_dequantizes_them(
    write_stored: WriteStored, kind: str, nested: bool
) -> None:
    torch.manual_seed(0)
    stored, expected = four_bits(torch.randn(48, 320), kind, nested)
    source = decode_source(write_stored(stored, CONFIG, dtype="float32"), CONFIG)
    assert set(source.headers) == {"a.weight"}
    torch.testing.assert_close(source.read("a.weight"), expected, rtol=1e-5, atol=1e-6)
    assert kind.upper() in source.stored_as


def test_in_strips(write_stored: WriteStored, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stored, _ = four_bits(torch.randn(7, 65), "nf4", True)
    source = decode_source(write_stored(stored, CONFIG, dtype="float32"), CONFIG)
    whole = source.read("a.weight")
    monkeypatch.setattr("compress.checkpoint.quantized.bitsandbytes._STRIP", 128)
    assert torch.equal(source.read("a.weight"), whole)


def test_int8_as_bitsandbytes_dequantizes_it(write_stored: WriteStored) -> None:
    torch.manual_seed(0)
    codes, scale, _ = bnb.int8_vectorwise_quant(torch.randn(16, 32, dtype=torch.float16))
    stored = {"a.weight": codes, "a.SCB": scale, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}
    source = decode_source(write_stored(stored, CONFIG, dtype="float32"), CONFIG)
    assert set(source.headers) == {"a.weight"}
    expected = bnb.int8_vectorwise_dequant(codes, scale)
    torch.testing.assert_close(source.read("a.weight"), expected.float(), rtol=1e-5, atol=1e-6)


def test_what_is_missing_is_named(write_stored: WriteStored) -> None:
    stored, _ = four_bits(torch.randn(8, 64), "nf4", False)
    lost = {name: tensor for name, tensor in stored.items() if not name.endswith(".absmax")}
    with pytest.raises(UserError, match=r"no a\.weight\.absmax"):
        decode_source(write_stored(lost, CONFIG), CONFIG)
    with pytest.raises(UserError, match="belongs to no INT8 weight"):
        decode_source(write_stored({"a.SCB": torch.ones(4), "a.weight": torch.ones(4, 4)}, CONFIG), CONFIG)
    with pytest.raises(UserError, match="tiles"):
        tiled = {"a.SCB": torch.ones(4), "a.weight": torch.ones(4, 4, dtype=torch.int8)}
        decode_source(
            write_stored({**tiled, "a.weight_format": torch.tensor(1, dtype=torch.uint8)}, CONFIG), CONFIG
        )
    with pytest.raises(UserError, match="no tensor is stored that way"):
        decode_source(write_stored({"b.weight": torch.ones(4, 4)}, CONFIG), CONFIG)
