"""NF4: bytes and states as bitsandbytes itself writes and reads them."""

from __future__ import annotations

import json

import bitsandbytes.functional as bnb
import pytest
import torch
from compress_kernels.layouts import NormalFloat4
from compress_kernels.layouts.nf4 import NF4_VALUES

SHAPE = (12, 128)


def test_the_table_is_the_librarys() -> None:
    table = bnb.get_4bit_type("nf4", device="cpu")
    assert torch.equal(torch.tensor(NF4_VALUES), table)
    assert list(NF4_VALUES) == sorted(NF4_VALUES)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_bytes_are_those_that_the_library_packs(block: int) -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.quantize_4bit(weight, blocksize=block, quant_type="nf4")
    layout = NormalFloat4(block, torch.float32)
    absmax = weight.view(SHAPE[0], -1, block).abs().amax(-1)
    scaled = weight / absmax.repeat_interleave(block, 1)
    codes = (scaled.unsqueeze(-1) - torch.tensor(NF4_VALUES)).abs().argmin(-1)
    tensors = layout.encode(codes, absmax)
    assert torch.equal(tensors["weight_packed"], packed)
    assert torch.allclose(tensors["weight_absmax"], state.absmax)
    ours = layout.decode(tensors, SHAPE, torch.float32)
    assert torch.allclose(ours, bnb.dequantize_4bit(packed, state), rtol=1e-6)


def test_codes_and_maxima_come_back() -> None:
    codes = torch.randint(0, 16, SHAPE, generator=torch.Generator().manual_seed(0))
    absmax = torch.rand(SHAPE[0], 2)
    layout = NormalFloat4(64)
    found = layout.codes(layout.encode(codes, absmax), SHAPE)
    assert torch.equal(found[0].to(codes.dtype), codes)
    assert torch.equal(found[1], absmax)


def test_the_first_of_two_codes_lies_in_the_high_half() -> None:
    codes = torch.zeros(1, 32, dtype=torch.int64)
    codes[0, 0], codes[0, 1] = 0xA, 0x3
    assert int(NormalFloat4(32).encode(codes, torch.ones(1, 1))["weight_packed"][0, 0]) == 0xA3


def test_the_state_says_what_the_weight_is() -> None:
    layout = NormalFloat4(64, torch.float16)
    state = json.loads(layout.state(SHAPE))
    assert state == {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [12, 128]}
    spec = layout.specs(SHAPE)["weight_state"]
    assert spec.shape == (len(layout.state(SHAPE)),)
