"""MXFP4 experts, against transformers' own conversion of the same blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from compress.checkpoint.quantized.read import decode_source
from compress.checkpoint.source import Source
from compress.errors import UserError

WriteStored = Callable[..., Source]
MXFP4 = {"quant_method": "mxfp4"}


def test_experts_as_transformers_converts_them(write_stored: WriteStored) -> None:
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (3, 48, 2, 16), dtype=torch.uint8)
    scales = torch.randint(118, 132, (3, 48, 2), dtype=torch.uint8)
    tensors = {"mlp.experts.up_blocks": blocks, "mlp.experts.up_scales": scales, "norm.weight": torch.ones(4)}
    source = decode_source(write_stored(tensors, MXFP4, dtype="bfloat16"), MXFP4)
    assert set(source.headers) == {"mlp.experts.up", "norm.weight"}
    found = source.read("mlp.experts.up")
    assert found.shape == source.headers["mlp.experts.up"].shape == (3, 64, 48)
    assert torch.equal(found, convert_moe_packed_tensors(blocks, scales))


def test_blocks_without_scales_are_refused(write_stored: WriteStored) -> None:
    tensors = {"up_blocks": torch.zeros(1, 4, 1, 16, dtype=torch.uint8), "up_scales": torch.zeros(1, 4, 2)}
    with pytest.raises(UserError, match="are not MXFP4"):
        decode_source(write_stored(tensors, MXFP4), MXFP4)
