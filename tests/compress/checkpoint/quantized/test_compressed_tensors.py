"""Every form of compressed-tensors, packed and unpacked by that library itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from compress.checkpoint.quantized.read import decode_source
from compress.checkpoint.source import Source
from compress.errors import UserError

WriteStored = Callable[..., Source]
OUT, IN = 48, 64
INT: dict[str, Any] = {"type": "int", "dynamic": False}
FP: dict[str, Any] = {"type": "float", "symmetric": True, "dynamic": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pack4_group": ("pack-quantized", {**INT, "num_bits": 4, "strategy": "group", "group_size": 16}),
    "pack4_asym": (
        "pack-quantized",
        {**INT, "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "pack3_asym": (
        "pack-quantized",
        {**INT, "num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "pack8_channel": ("pack-quantized", {**INT, "num_bits": 8, "strategy": "channel"}),
    "int8_channel": ("int-quantized", {**INT, "num_bits": 8, "strategy": "channel"}),
    "int8_tensor": ("int-quantized", {**INT, "num_bits": 8, "strategy": "tensor"}),
    "int8_asym": ("int-quantized", {**INT, "num_bits": 8, "strategy": "channel", "symmetric": False}),
    "fp8_channel": ("float-quantized", {**FP, "num_bits": 8, "strategy": "channel"}),
    "fp8_tensor": ("float-quantized", {**FP, "num_bits": 8, "strategy": "tensor"}),
    "fp8_group": ("naive-quantized", {**FP, "num_bits": 8, "strategy": "group", "group_size": 32}),
    "fp8_block": (
        "float-quantized",
        {**FP, "num_bits": 8, "strategy": "block", "block_structure": [32, 32]},
    ),
    "nvfp4": ("nvfp4-pack-quantized", {**FP, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
    "mxfp4": ("mxfp4-pack-quantized", {**FP, "num_bits": 4, "strategy": "group", "group_size": 32}),
    "mxfp8": (
        "mxfp8-quantized",
        {**FP, "num_bits": 8, "strategy": "group", "group_size": 32, "scale_dtype": torch.uint8},
    ),
}


def packed(form: str, arguments: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, QuantizationScheme]:
    """The library's tensors for a random weight, what it unpacks them to, and the scheme."""
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN)
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    state = {"weight": weight, **_parameters(weight, args)}
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(dict(stored), scheme)["weight"], scheme


def _parameters(weight: Tensor, args: QuantizationArgs) -> dict[str, Tensor]:
    size = args.group_size
    if args.strategy == "block":
        rows, columns = args.block_structure or (1, 1)
        padded = torch.nn.functional.pad(weight, (0, -IN % columns, 0, -OUT % rows))
        grid = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        low, high = grid.amin((1, 3)), grid.amax((1, 3))
    elif args.strategy == "tensor":
        low, high = weight.min().view(1), weight.max().view(1)
    else:
        grouped = weight.view(OUT, -1, size or IN)
        low, high = grouped.amin(-1), grouped.amax(-1)
    extra = {}
    if args.strategy == "tensor_group":
        extra["weight_global_scale"] = (448 * 6 / weight.abs().max()).view(1)
    scale, zero = calculate_qparams(low, high, args, global_scale=extra.get("weight_global_scale"))
    if scale.dtype == torch.float8_e4m3fn:
        scale = scale.float()
    return {"weight_scale": scale, "weight_zero_point": zero, **extra}


def settings(form: str, scheme: QuantizationScheme) -> dict[str, Any]:
    groups = {"group_0": scheme.model_dump(mode="json")}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


@pytest.mark.parametrize("case", CASES)
def test_decoded_as_the_library_does_it(write_stored: WriteStored, case: str) -> None:
    form, arguments = CASES[case]
    stored, expected, scheme = packed(form, arguments)
    config = settings(form, scheme)
    named = {f"model.layers.0.proj.{suffix}": tensor for suffix, tensor in stored.items()}
    source = decode_source(write_stored(named, config, dtype="float32"), config)
    assert set(source.headers) == {"model.layers.0.proj.weight"}
    found = source.read("model.layers.0.proj.weight")
    assert found.dtype == source.headers["model.layers.0.proj.weight"].dtype == torch.float32
    tolerance = 1e-2 if expected.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, expected.float(), rtol=tolerance, atol=1e-6)
    assert form in source.stored_as


def test_columns_in_another_order(write_stored: WriteStored) -> None:
    """Files of older versions: every column names its group."""
    form, arguments = CASES["pack4_asym"]
    stored, _, scheme = packed(form, arguments)
    codes = unpack_from_int32(stored["weight_packed"], 4, torch.Size((OUT, IN))).double()
    zero = unpack_from_int32(stored["weight_zero_point"], 4, torch.Size((OUT, 2)), packed_dim=0).double()
    group = (torch.arange(IN) // 32)[torch.randperm(IN)]
    expected = (codes - zero[:, group]) * stored["weight_scale"].double()[:, group]
    config = settings(form, scheme)
    named = {f"a.{s}": t for s, t in stored.items()} | {"a.weight_g_idx": group.to(torch.int32)}
    found = decode_source(write_stored(named, config, dtype="float32"), config).read("a.weight")
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_exact_names_come_before_patterns_and_classes(write_stored: WriteStored) -> None:
    form, four = CASES["pack4_group"]
    stored4, expected4, scheme4 = packed(form, four)
    stored8, expected8, scheme8 = packed(*CASES["pack8_channel"])
    config = settings(form, scheme4)
    config["config_groups"]["group_1"] = {**scheme8.model_dump(mode="json"), "targets": ["re:.*b$"]}
    named = {f"a.{s}": t for s, t in stored4.items()} | {f"b.{s}": t for s, t in stored8.items()}
    source = decode_source(write_stored(named, config, dtype="float32"), config)
    torch.testing.assert_close(source.read("a.weight"), expected4.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(source.read("b.weight"), expected8.float(), rtol=1e-5, atol=1e-6)


def test_what_serves_activations_alone_is_left_out(write_stored: WriteStored) -> None:
    form, arguments = CASES["fp8_tensor"]
    stored, _, scheme = packed(form, arguments)
    config = settings(form, scheme)
    named = {f"attn.q_proj.{s}": t for s, t in stored.items()}
    more = {name: torch.ones(1) for name in ("attn.q_proj.input_scale", "attn.k_scale", "attn.v_scale")}
    source = decode_source(write_stored({**named, **more}, config), config)
    assert set(source.headers) == {"attn.q_proj.weight"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "rotates"),
        ({"config_groups": {}}, "no config group"),
    ],
    ids=str,
)
def test_what_cannot_be_undone_is_refused(
    write_stored: WriteStored, change: dict[str, Any], word: str
) -> None:
    form, arguments = CASES["pack4_group"]
    stored, _, scheme = packed(form, arguments)
    config = {**settings(form, scheme), **change}
    with pytest.raises(UserError, match=word):
        decode_source(write_stored({f"a.{s}": t for s, t in stored.items()}, config), config)


def test_a_scale_that_does_not_fit_is_refused(write_stored: WriteStored) -> None:
    form, arguments = CASES["pack4_group"]
    stored, _, scheme = packed(form, arguments)
    stored["weight_scale"] = stored["weight_scale"][:, :-1]
    config = settings(form, scheme)
    with pytest.raises(UserError, match="does not fit"):
        decode_source(write_stored({f"a.{s}": t for s, t in stored.items()}, config), config)
