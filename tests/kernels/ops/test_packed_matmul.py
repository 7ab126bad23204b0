"""The packed product on the CPU: every width and grouping against the layer that holds the dequantized weight."""

from __future__ import annotations

import itertools

import pytest
import torch
from compress_kernels.layouts import PackedInteger
from compress_kernels.ops import packed_matmul
from compress_kernels.ops.dispatch import BackendError
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def packed(layout: PackedInteger, shape: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out, columns = shape
    groups = 1 if isinstance(layout.group_size, str) else columns // layout.group_size
    rows = 1 if layout.group_size == "tensor" else out
    codes = torch.randint(0, 1 << layout.bits, shape, generator=generator)
    scale = torch.rand(rows, groups, generator=generator) * 0.02 + 0.001
    zero = (
        None if layout.symmetric else torch.randint(0, 1 << layout.bits, (rows, groups), generator=generator)
    )
    return layout.encode(codes, scale, zero)


def relative(y: Tensor, reference: Tensor) -> float:
    return float((y.double() - reference).norm() / reference.norm())


def expected(layout: PackedInteger, tensors: dict[str, Tensor], shape: tuple[int, int], x: Tensor) -> Tensor:
    return x.double() @ layout.decode(tensors, shape, x.dtype).double().T


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_equals_dequantized(bits: int, symmetric: bool, backend: str) -> None:
    groups = (32, 96, "channel", "tensor")
    shapes = ((33, 96), (40, 384), (64, 1152))
    for group, shape in itertools.product(groups, shapes):
        layout = PackedInteger(bits, group, symmetric)
        tensors = packed(layout, shape)
        prepared = packed_matmul.prepare(layout, tensors, shape, backend=backend)
        for rows, dtype in itertools.product((1, 3, 17), TOLERANCE):
            x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)
            y = prepared(x)
            assert y.dtype == dtype
            assert relative(y, expected(layout, tensors, shape, x)) < TOLERANCE[dtype], (
                layout,
                shape,
                rows,
                dtype,
            )


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 9, 12, 13, 25, 129, 500])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_every_number_of_rows(rows: int, group: int) -> None:
    layout, shape = PackedInteger(4, group, False), (65, 640)
    tensors = packed(layout, shape)
    prepared = packed_matmul.prepare(layout, tensors, shape)
    bias, residual = torch.randn(shape[0]), torch.randn(rows, shape[0])
    x = torch.randn(rows, shape[1]).to(torch.bfloat16)
    y = prepared(x, bias, residual, torch.float32)
    assert y.dtype == torch.float32
    assert relative(y, expected(layout, tensors, shape, x) + bias + residual) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_many_rows(bits: int) -> None:
    for group, shape in ((32, (65, 96)), ("channel", (33, 520)), (128, (48, 1152))):
        layout = PackedInteger(bits, group, bits % 2 == 0)  # type: ignore[arg-type]
        tensors = packed(layout, shape)
        prepared = packed_matmul.prepare(layout, tensors, shape)
        x = torch.randn(400, shape[1]).to(torch.bfloat16)
        assert relative(prepared(x), expected(layout, tensors, shape, x)) < TOLERANCE[torch.bfloat16]
        with torch.inference_mode():
            torch.testing.assert_close(prepared(x.clone()), prepared(x))


def test_wide_rows_are_taken_in_pieces() -> None:
    layout, shape = PackedInteger(3, 128), (16, 8320)
    tensors = packed(layout, shape)
    x = torch.randn(20, shape[1]).to(torch.bfloat16)
    y = packed_matmul.prepare(layout, tensors, shape)(x)
    assert relative(y, expected(layout, tensors, shape, x)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_shapes_and_strides(dtype: torch.dtype) -> None:
    layout, shape = PackedInteger(4, 32), (33, 96)
    tensors = packed(layout, shape)
    prepared = packed_matmul.prepare(layout, tensors, shape)
    wide = torch.randn(2, 5, 192).to(dtype)
    strided = wide[..., ::2]
    assert torch.equal(prepared(strided), prepared(strided.contiguous()))
    assert torch.equal(prepared(strided.transpose(0, 1)), prepared(strided).transpose(0, 1))
    assert prepared(torch.empty(0, 96, dtype=dtype)).shape == (0, 33)
    assert prepared(torch.empty(2, 0, 96, dtype=dtype)).shape == (2, 0, 33)
    assert prepared(torch.randn(96).to(dtype)).shape == (33,)


def test_same_result_twice_and_in_any_batch() -> None:
    layout, shape = PackedInteger(4, 128), (48, 512)
    prepared = packed_matmul.prepare(layout, packed(layout, shape), shape)
    x = torch.randn(8, 512).to(torch.bfloat16)
    assert torch.equal(prepared(x), prepared(x))
    torch.testing.assert_close(prepared(x[:1]), prepared(x)[:1])


def test_infinite_and_nan_inputs_stay_visible() -> None:
    layout, shape = PackedInteger(4, 32), (33, 96)
    prepared = packed_matmul.prepare(layout, packed(layout, shape), shape)
    for dtype in TOLERANCE:
        x = torch.ones(1, 96, dtype=dtype)
        x[0, 5] = float("nan")
        assert prepared(x).isnan().all()


def test_prepared_form_is_the_one_on_disk() -> None:
    layout, shape = PackedInteger(4, 128), (256, 1024)
    tensors = packed(layout, shape)
    prepared = packed_matmul.prepare(layout, tensors, shape)
    assert prepared.nbytes <= sum(tensor.nbytes for tensor in tensors.values())


def test_one_operator_under_compile() -> None:
    layout, shape = PackedInteger(4, 32), (33, 96)
    prepared = packed_matmul.prepare(layout, packed(layout, shape), shape)
    compiled = torch.compile(lambda x: prepared(x) + 1, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 96).to(torch.bfloat16)
    torch.testing.assert_close(compiled(x), prepared(x) + 1)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("weight_packed", lambda t: t[:, :-1], "weight_packed"),
        ("weight_packed", lambda t: t.to(torch.int64), "weight_packed"),
        ("weight_scale", lambda t: t[:, :1], "weight_scale"),
        ("weight_scale", lambda t: t.float(), "weight_scale"),
        ("weight_shape", lambda t: t + 1, "weight_shape"),
        ("weight_zero_point", lambda t: t[:-1], "weight_zero_point"),
    ],
)
def test_bad_tensors_are_named(suffix: str, change: object, message: str) -> None:
    layout, shape = PackedInteger(4, 32, False), (33, 96)
    tensors = packed(layout, shape)
    tensors[suffix] = change(tensors[suffix])  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        packed_matmul.prepare(layout, tensors, shape)


def test_bad_calls() -> None:
    layout, shape = PackedInteger(4, 32), (33, 96)
    tensors = packed(layout, shape)
    prepared = packed_matmul.prepare(layout, tensors, shape)
    with pytest.raises(ValueError, match="features"):
        prepared(torch.randn(2, 95))
    with pytest.raises(ValueError, match=r"not .*(Double|float64)"):
        prepared(torch.randn(2, 96, dtype=torch.float64))
    with pytest.raises(BackendError, match="choose"):
        packed_matmul.prepare(layout, tensors, shape, backend="cuda")
    with pytest.raises(ValueError, match="lacks"):
        packed_matmul.prepare(layout, {"weight_packed": tensors["weight_packed"]}, shape)


def test_a_backend_asked_for_by_name_loads_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    layout, shape = PackedInteger(4, 32), (33, 96)
    with pytest.raises(BackendError, match="triton"):
        packed_matmul.prepare(layout, packed(layout, shape), shape, backend="triton")


def test_groups_that_the_triton_kernel_cannot_read_are_left_to_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        packed_matmul, "BACKENDS", {k: v for k, v in packed_matmul.BACKENDS.items() if k != "cpu"}
    )
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    layout, shape = PackedInteger(4, 24), (33, 96)
    with pytest.raises(BackendError, match="groups of a multiple of 16 columns, not 24"):
        packed_matmul.prepare(layout, packed(layout, shape), shape, backend="triton")
    assert "not triton" in packed_matmul.prepare(layout, packed(layout, shape), shape).note
    assert (
        packed_matmul.prepare(PackedInteger(3, 48), packed(PackedInteger(3, 48), shape), shape).note
        == "triton"
    )
