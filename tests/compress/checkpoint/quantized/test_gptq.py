"""GPTQ and AWQ layers that GPTQModel 7.6 packed and dequantized itself (the file beside this one)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.checkpoint.quantized.read import decode_source
from compress.checkpoint.source import Source
from compress.errors import UserError

WriteStored = Callable[..., Source]
PACKED = load_file(Path(__file__).parent / "gptqmodel-7.6.safetensors")
GPTQ = {"gptq.w2": 2, "gptq.w3": 3, "gptq.w4": 4, "gptq.w4_asym_act": 4, "gptq.w8": 8, "gptq_v2.w4": 4}
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def layer(name: str, module: str = "layers.0.proj") -> tuple[dict[str, Tensor], Tensor]:
    """The stored tensors of a packed layer under a module's name, and what GPTQModel makes of them."""
    stored = {f"{module}.{s}": PACKED[f"{name}.{s}"] for s in SUFFIXES if f"{name}.{s}" in PACKED}
    return stored, PACKED[f"{name}.expected"]


def settings(name: str, bits: int) -> dict[str, object]:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": 32,
        "checkpoint_format": name.partition(".")[0],
    }


@pytest.mark.parametrize(("name", "bits"), GPTQ.items())
def test_gptq_as_gptqmodel_dequantizes_it(write_stored: WriteStored, name: str, bits: int) -> None:
    stored, expected = layer(name)
    source = decode_source(write_stored(stored, settings(name, bits), dtype="float16"), settings(name, bits))
    assert set(source.headers) == {"layers.0.proj.weight"}
    info = source.headers["layers.0.proj.weight"]
    assert (info.shape, info.dtype, info.nbytes) == (expected.shape, torch.float16, 2 * expected.numel())
    torch.testing.assert_close(source.read("layers.0.proj.weight"), expected, rtol=1e-3, atol=0)
    assert source.stored_as.startswith("GPTQ")


def test_gptq_without_an_order_of_columns(write_stored: WriteStored) -> None:
    """Files of some writers have no g_idx: groups then are runs of columns."""
    stored, expected = layer("gptq.w4")
    del stored["layers.0.proj.g_idx"]
    config = settings("gptq.w4", 4)
    source = decode_source(write_stored(stored, config, dtype="float16"), config)
    torch.testing.assert_close(source.read("layers.0.proj.weight"), expected, rtol=1e-3, atol=0)


def test_bits_may_differ_by_layer(write_stored: WriteStored) -> None:
    first, expected = layer("gptq.w4")
    second, other = layer("gptq.w8", "layers.1.proj")
    config = {**settings("gptq.w4", 4), "dynamic": {r"+:.*\.1\..*": {"bits": 8, "group_size": 64}}}
    source = decode_source(write_stored({**first, **second}, config, dtype="float16"), config)
    torch.testing.assert_close(source.read("layers.0.proj.weight"), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(source.read("layers.1.proj.weight"), other, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["awq", "auto-round"])
def test_awq_as_gptqmodel_dequantizes_it(write_stored: WriteStored, method: str) -> None:
    stored, expected = layer("awq.w4")
    config = {"quant_method": method, "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"}
    source = decode_source(write_stored(stored, config, dtype="float16"), config)
    torch.testing.assert_close(source.read("layers.0.proj.weight"), expected, rtol=1e-3, atol=1e-6)


def test_what_is_not_quantized_stays_where_it_is(write_stored: WriteStored) -> None:
    stored, _ = layer("gptq.w4")
    norm = torch.rand(64).to(torch.float16)
    config = settings("gptq.w4", 4)
    source = decode_source(write_stored({**stored, "norm.weight": norm}, config), config)
    assert torch.equal(source.read("norm.weight"), norm)
    assert "quantization_config" not in source.config
    assert source.headers["layers.0.proj.weight"].dtype == torch.float16  # that of the scales


@pytest.mark.parametrize("lost", ["qzeros", "scales"])
def test_a_missing_part_is_named(write_stored: WriteStored, lost: str) -> None:
    for name in ("gptq.w4", "awq.w4"):
        stored, _ = layer(name)
        del stored[f"layers.0.proj.{lost}"]
        method = name.partition(".")[0]
        source = write_stored(stored, {"quant_method": method})
        with pytest.raises(UserError, match=f"no layers.0.proj.{lost}"):
            decode_source(source, {"quant_method": method, "bits": 4})


def test_shapes_that_do_not_fit_are_refused(write_stored: WriteStored) -> None:
    for name in ("gptq.w4", "awq.w4"):
        stored, _ = layer(name)
        stored["layers.0.proj.scales"] = stored["layers.0.proj.scales"][:, :-8]
        method = name.partition(".")[0]
        with pytest.raises(UserError, match="do not fit each other"):
            decode_source(write_stored(stored, {"quant_method": method}), {"quant_method": method, "bits": 4})


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "awq", "bits": 3},
        {"quant_method": "aqlm"},
    ],
    ids=str,
)
def test_layouts_that_are_not_read_are_named(write_stored: WriteStored, config: dict[str, object]) -> None:
    stored, _ = layer("gptq.w4")
    with pytest.raises(UserError, match="not read here"):
        decode_source(write_stored(stored, config), config)
