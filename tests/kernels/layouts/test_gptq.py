"""GPTQ's layout against the format's description, read bit by bit, and against layers that GPTQModel 7.6 packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compress_kernels.layouts import GPTQInteger, check, layout_from_json
from compress_kernels.layouts.integer import Group
from safetensors.torch import load_file
from torch import Tensor

TESTS = Path(__file__).parents[2]
THEIRS = load_file(TESTS / "compress" / "checkpoint" / "quantized" / "gptqmodel-7.6.safetensors")
SHAPE = (32, 64)


def parts(layout: GPTQInteger) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes ``[out, in]``, scales and zero points ``[out, groups]`` from 1 up."""
    generator = torch.Generator().manual_seed(layout.bits)
    groups = 1 if layout.group_size == "channel" else SHAPE[1] // int(layout.group_size)
    codes = torch.randint(0, 1 << layout.bits, SHAPE, generator=generator)
    zero = torch.randint(1, 1 << layout.bits, (SHAPE[0], groups), generator=generator)
    return codes, (torch.rand(SHAPE[0], groups, generator=generator) + 0.1).half(), zero


def field(words: list[int], index: int, bits: int) -> int:
    """Number ``index`` of a stream of ``bits``-bit numbers, lowest bit first, across words."""
    stream = sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
    return (stream >> (index * bits)) & ((1 << bits) - 1)


def slow_decode(tensors: dict[str, Tensor], bits: int, less_one: int) -> Tensor:
    """``(q − z) · s`` float64 ``[out, in]``, element by element; z as the first version stores it is ``field + 1``."""
    qweight, qzeros, scales, group = (
        tensors[key].tolist() for key in ("qweight", "qzeros", "scales", "g_idx")
    )
    out, columns = len(scales[0]), len(group)
    result = torch.empty(out, columns, dtype=torch.float64)
    for row in range(out):
        words = [line[row] for line in qweight]
        for column in range(columns):
            zero = field(qzeros[group[column]], row, bits) + less_one
            result[row, column] = (field(words, column, bits) - zero) * scales[group[column]][row]
    return result


@pytest.mark.parametrize("less_one", [True, False])
@pytest.mark.parametrize("group", [32, "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_is_written_is_what_the_format_says(bits: int, group: Group, less_one: bool) -> None:
    layout = GPTQInteger(bits, group, symmetric=False, less_one=less_one)
    codes, scale, zero = parts(layout)
    tensors = layout.encode(codes, scale, zero)
    check(layout, tensors, SHAPE)
    width = SHAPE[1] // scale.shape[1]
    expected = (codes - zero.repeat_interleave(width, 1)).double() * scale.double().repeat_interleave(
        width, 1
    )
    torch.testing.assert_close(slow_decode(tensors, bits, int(less_one)), expected, rtol=0, atol=0)
    torch.testing.assert_close(layout.decode(tensors, SHAPE, torch.float64), expected, rtol=0, atol=0)
    found = layout.codes(tensors, SHAPE)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, (codes, scale, zero), strict=True))


@pytest.mark.parametrize(
    ("name", "bits", "group"),
    [
        ("gptq.w2", 2, 16),
        ("gptq.w3", 3, 32),
        ("gptq.w4", 4, 32),
        ("gptq.w4_asym_act", 4, 32),
        ("gptq.w8", 8, "channel"),
        ("gptq_v2.w4", 4, 32),
    ],
)
def test_the_bytes_of_gptqmodel(name: str, bits: int, group: Group) -> None:
    """Some of the layers have act-order, which only their ``g_idx`` tells."""
    theirs = {suffix: THEIRS[f"{name}.{suffix}"] for suffix in ("qweight", "qzeros", "scales")}
    layout = GPTQInteger(bits, group, less_one=name.startswith("gptq."))
    codes, scale, zero = layout.codes(theirs, SHAPE)
    index = THEIRS[f"{name}.g_idx"].long()
    values = (codes - zero[:, index]).double() * scale[:, index].double()
    torch.testing.assert_close(values, THEIRS[f"{name}.expected"].double(), rtol=1e-3, atol=1e-6)
    if layout.less_one and int(zero.min()) == 0:  # GPTQModel let a zero point of 0 borrow from its neighbour
        zero = zero.clamp_min(1)
        theirs["qzeros"] = GPTQInteger(bits, group, less_one=False).encode(codes, scale, zero - 1)["qzeros"]
    ours = layout.encode(codes, scale, zero)
    assert {key: ours[key].tolist() for key in theirs} == {
        key: value.tolist() for key, value in theirs.items()
    }


def test_a_scale_of_all_groups_is_repeated() -> None:
    layout = GPTQInteger(4, 32)
    tensors = layout.encode(torch.full(SHAPE, 9), torch.tensor([[0.5]]), torch.tensor([[8]]))
    assert bool((layout.decode(tensors, SHAPE, torch.float32) == 0.5).all())


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2, 3, 4 or 8 bits, not 5"):
        GPTQInteger(5)
    with pytest.raises(ValueError, match="whole 32-bit words"):
        GPTQInteger(4, 32).specs((12, 64))
    with pytest.raises(ValueError, match="does not divide"):
        GPTQInteger(4, 48).specs(SHAPE)
    with pytest.raises(ValueError, match="zero point of 0"):
        GPTQInteger(4, 64).encode(
            torch.zeros(SHAPE, dtype=torch.int32), torch.ones(32, 1), torch.zeros(32, 1)
        )


def test_plain_data() -> None:
    layout = GPTQInteger(3, "channel", symmetric=False)
    assert layout_from_json(layout.to_json()) == layout
