"""Layers that ModelOpt 0.47 exported itself (the file beside this one), decoded and packed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.checkpoint.quantized.read import decode_source, method_of
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.modelopt import ALGORITHMS, read_modelopt_packed, reads_packed

WriteStored = Callable[..., Source]
PACKED = load_file(Path(__file__).parent / "modelopt-0.47.safetensors")
SUFFIXES = ("weight", "weight_scale", "weight_scale_2", "input_scale")
MODULE = "layers.0.proj"


def layer(algorithm: str) -> dict[str, Tensor]:
    return {f"{MODULE}.{s}": PACKED[f"{algorithm}.{s}"] for s in SUFFIXES if f"{algorithm}.{s}" in PACKED}


def expected(algorithm: str) -> Tensor:
    """What ModelOpt itself makes of it; of MXFP8, which it decodes on GPUs alone, by the definition of the format."""
    if algorithm != "MXFP8":
        return PACKED[f"{algorithm}.expected"].double()
    values, octets = (PACKED[f"{algorithm}.{suffix}"] for suffix in ("weight", "weight_scale"))
    return values.double() * torch.exp2(octets.double() - 127).repeat_interleave(32, 1)


def settings(algorithm: str) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_as_modelopt_decodes_it(algorithm: str, write_stored: WriteStored) -> None:
    source = write_stored(layer(algorithm), settings(algorithm))
    dense = decode_source(source, settings(algorithm)).read(f"{MODULE}.weight").double()
    theirs = expected(algorithm)
    near = 2**-8
    if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        # What it simulates, with a scale in bf16, is a step of E4M3 away in places from what it writes; the tensors say what.
        assert float(((dense - theirs).abs() > near * theirs.abs()).double().mean()) < 0.02
        values, scale = (PACKED[f"{algorithm}.{suffix}"].double() for suffix in ("weight", "weight_scale"))
        theirs = values * (scale if scale.dim() == 0 else scale[:, None])
    torch.testing.assert_close(dense, theirs, rtol=near, atol=0)
    assert reads_packed(source, settings(algorithm))
    held = read_modelopt_packed(source, settings(algorithm))[MODULE]
    ours = held.layout.decode(held.tensors(source), held.shape, torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=near if algorithm == "FP8_PB_WO" else 1e-6, atol=0)
    assert (held.activations is None) == (algorithm == "W4A16_NVFP4")


def test_the_reciprocal_of_the_inputs_scale(write_stored: WriteStored) -> None:
    source = write_stored(layer("NVFP4"), settings("NVFP4"))
    held = read_modelopt_packed(source, settings("NVFP4"))[MODULE]
    (scale,) = held.inputs(source).values()
    assert float(scale) == pytest.approx(1 / float(PACKED["NVFP4.input_scale"]), rel=1e-6)


def test_names_that_vllm_gives_the_method() -> None:
    assert method_of({"quant_method": "modelopt_fp4"}) == "modelopt"


def test_another_layout_is_decoded_or_refused(write_stored: WriteStored) -> None:
    one = torch.ones((), dtype=torch.float32)
    whole = {**layer("FP8_PB_WO"), f"{MODULE}.weight_scale": one}
    source = write_stored(whole, settings("FP8_PB_WO"))
    assert not reads_packed(source, settings("FP8_PB_WO"))
    dense = decode_source(source, settings("FP8_PB_WO")).read(f"{MODULE}.weight")
    assert torch.equal(dense.float(), PACKED["FP8_PB_WO.weight"].float())
    integers = {**layer("FP8"), f"{MODULE}.weight": torch.ones(4, 4, dtype=torch.int8)}
    source = write_stored(integers, settings("W8A8_SQ"))
    with pytest.raises(UserError, match=r"is torch\.int8 of ModelOpt, which is not read here"):
        decode_source(source, settings("W8A8_SQ"))
    with pytest.raises(UserError, match="ModelOpt's 'W8A8_SQ', which is not read here: FP8"):
        read_modelopt_packed(source, settings("W8A8_SQ"))
    source = write_stored({"a.weight_scale": one}, settings("FP8"))
    with pytest.raises(UserError, match="belongs to no weight"):
        decode_source(source, settings("FP8"))
