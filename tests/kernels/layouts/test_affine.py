"""MLX's affine layout against what mlx 0.32 packed and dequantized itself (`mlx-0.32.safetensors`).

The file was made by ``mx.quantize(w, group_size=…, bits=…)`` and ``mx.dequantize`` with fp32 scales, for a bf16 ``w`` of normal
numbers ``[4, 128]``; ``mxfp4``, ``nvfp4`` and ``mxfp8`` by the same with ``mode=…``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compress_kernels.layouts import AffineInteger, check, layout_from_json
from safetensors.torch import load_file
from torch import Tensor

THEIRS = load_file(Path(__file__).parent / "mlx-0.32.safetensors")
SHAPE = (4, 128)
SCHEMES = [(2, 64), (3, 64), (4, 32), (4, 64), (4, 128), (5, 64), (6, 64), (8, 64)]


def theirs(bits: int, group: int) -> tuple[dict[str, Tensor], Tensor]:
    name = f"affine.w{bits}g{group}"
    tensors = {suffix: THEIRS[f"{name}.{suffix}"] for suffix in ("weight", "scales", "biases")}
    return tensors, THEIRS[f"{name}.expected"]


def slow_decode(tensors: dict[str, Tensor], bits: int, group: int) -> Tensor:
    """``s · q + β`` float64 ``[out, in]``, element by element from one stream of bits in a row, lowest bit first."""
    result = torch.empty(SHAPE, dtype=torch.float64)
    scales, biases = tensors["scales"].double(), tensors["biases"].double()
    for row, words in enumerate(tensors["weight"].tolist()):
        stream = sum(word << (32 * i) for i, word in enumerate(words))
        for column in range(SHAPE[1]):
            code = (stream >> (column * bits)) & ((1 << bits) - 1)
            result[row, column] = code * scales[row, column // group] + biases[row, column // group]
    return result


@pytest.mark.parametrize(("bits", "group"), SCHEMES)
def test_the_bytes_and_values_of_mlx(bits: int, group: int) -> None:
    layout, (tensors, expected) = AffineInteger(bits, group), theirs(bits, group)
    check(layout, tensors, SHAPE)
    decoded = layout.decode(tensors, SHAPE, torch.float32)
    torch.testing.assert_close(decoded, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(decoded.double(), slow_decode(tensors, bits, group), rtol=1e-6, atol=1e-8)
    ours = layout.encode(*layout.codes(tensors, SHAPE))
    assert {key: value.tolist() for key, value in ours.items()} == {k: v.tolist() for k, v in tensors.items()}


def test_fewer_groups_are_repeated() -> None:
    layout = AffineInteger(4, 32, torch.float32)
    tensors = layout.encode(
        torch.full(SHAPE, 3), torch.tensor([[0.5]]), torch.tensor([[-1.0], [0.0], [1.0], [2.0]])
    )
    assert tensors["scales"].shape == tensors["biases"].shape == (4, 4)
    assert layout.decode(tensors, SHAPE, torch.float32)[:, ::32].tolist() == [
        [v] * 4 for v in (0.5, 1.5, 2.5, 3.5)
    ]


def test_what_does_not_fit_and_plain_data() -> None:
    with pytest.raises(ValueError, match="not 7"):
        AffineInteger(7)
    with pytest.raises(ValueError, match="not 16"):
        AffineInteger(4, 16)
    with pytest.raises(ValueError, match="does not divide"):
        AffineInteger(4, 64).specs((4, 96))
    layout = AffineInteger(6, 32, torch.float16)
    assert layout_from_json(layout.to_json()) == layout
