"""AWQ's layout against the format's description, read nibble by nibble, and against a layer that GPTQModel 7.6 packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compress_kernels.layouts import AWQInteger, check, layout_from_json
from compress_kernels.layouts.integer import Group
from safetensors.torch import load_file

TESTS = Path(__file__).parents[2]
THEIRS = load_file(TESTS / "compress" / "checkpoint" / "quantized" / "gptqmodel-7.6.safetensors")
SHAPE = (16, 64)
PLACES = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
"""Output of eight → the nibble of the word that holds it."""


def nibble(word: int, output: int) -> int:
    return ((word & 0xFFFFFFFF) >> (4 * PLACES[output % 8])) & 15


@pytest.mark.parametrize("group", [32, "channel"])
def test_what_is_written_is_what_the_format_says(group: Group) -> None:
    generator = torch.Generator().manual_seed(0)
    layout, groups = AWQInteger(group), 1 if group == "channel" else 2
    codes = torch.randint(0, 16, SHAPE, generator=generator)
    zero = torch.randint(0, 16, (SHAPE[0], groups), generator=generator)
    scale = (torch.rand(SHAPE[0], groups, generator=generator) + 0.1).half()
    tensors = layout.encode(codes, scale, zero)
    check(layout, tensors, SHAPE)
    qweight, qzeros, scales = (tensors[key].tolist() for key in ("qweight", "qzeros", "scales"))
    expected = torch.empty(SHAPE, dtype=torch.float64)
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            at = column * groups // SHAPE[1]
            code, point = nibble(qweight[column][row // 8], row), nibble(qzeros[at][row // 8], row)
            assert (code, point) == (int(codes[row, column]), int(zero[row, at]))
            expected[row, column] = (code - point) * scales[at][row]
    torch.testing.assert_close(layout.decode(tensors, SHAPE, torch.float64), expected, rtol=0, atol=0)


def test_the_bytes_of_gptqmodel() -> None:
    theirs = {suffix: THEIRS[f"awq.w4.{suffix}"] for suffix in ("qweight", "qzeros", "scales")}
    layout, shape = AWQInteger(32), (32, 64)
    check(layout, theirs, shape)
    decoded = layout.decode(theirs, shape, torch.float64)
    torch.testing.assert_close(decoded, THEIRS["awq.w4.expected"].double(), rtol=1e-3, atol=1e-6)
    ours = layout.encode(*layout.codes(theirs, shape))
    assert {key: value.tolist() for key, value in ours.items()} == {k: v.tolist() for k, v in theirs.items()}


def test_what_does_not_fit_and_plain_data() -> None:
    with pytest.raises(ValueError, match="12 outputs are no multiple"):
        AWQInteger(32).specs((12, 64))
    with pytest.raises(ValueError, match="does not divide"):
        AWQInteger(48).specs(SHAPE)
    assert layout_from_json(AWQInteger(64).to_json()) == AWQInteger(64)
