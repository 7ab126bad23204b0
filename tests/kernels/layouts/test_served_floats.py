"""Small floats under other names: they come back bit for bit, in the shapes that the forms have."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import PackedFloat, ServedFloat, check, layout_from_json
from compress_kernels.layouts.served_floats import KINDS

SHAPE = (200, 256)
FORMS = [(form, *kind) for form, kinds in KINDS.items() for kind in kinds]
SCALES = {
    ("fp8", "fp8", "block"): (2, 2),
    ("modelopt", "fp8", "tensor"): (),
    ("modelopt", "fp8", "channel"): (200,),
    ("modelopt", "fp8", "block"): (2, 1, 2, 1),
    ("modelopt", "mxfp8", 32): (200, 8),
    ("modelopt", "nvfp4", 16): (200, 16),
}


def packed(layout: PackedFloat) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    top = 15 if layout.bits == 4 else 253
    codes = torch.randint(0, top, SHAPE, generator=generator)
    scale = torch.exp2(torch.randint(-4, 3, layout.scale_grid(SHAPE), generator=generator).float())
    return layout.encode(codes, scale, torch.tensor([3.0]) if layout.type == "nvfp4" else None)


@pytest.mark.parametrize(("form", "type", "group"), FORMS)
def test_there_and_back(form: str, type: str, group: int | str) -> None:
    layout = ServedFloat(form, type, group)  # type: ignore[arg-type]
    tensors = packed(layout.plain)
    stored = layout.of_plain(tensors)
    check(layout, stored, SHAPE)
    assert stored[layout.scale_name].shape == SCALES[form, type, group]
    back = layout.to_plain(stored)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name].float(), tensor.float(), rtol=2e-7, atol=0)
        assert back[name].dtype == tensor.dtype
    ours = layout.decode(stored, SHAPE, torch.float32)
    torch.testing.assert_close(ours, layout.plain.decode(tensors, SHAPE, torch.float32), rtol=2e-7, atol=0)
    assert layout_from_json(layout.to_json()) == layout


@pytest.mark.parametrize(
    ("form", "type", "group"),
    [("fp8", "fp8", "channel"), ("modelopt", "mxfp4", 32), ("other", "fp8", "block")],
)
def test_what_a_form_does_not_have(form: str, type: str, group: int | str) -> None:
    with pytest.raises(ValueError, match=f"the form '{form}' has no {type} with scales by {group}"):
        ServedFloat(form, type, group)  # type: ignore[arg-type]


def test_columns_are_whole_blocks() -> None:
    with pytest.raises(ValueError, match="do not divide 192 input features"):
        ServedFloat("fp8", "fp8", "block").specs((128, 192))
