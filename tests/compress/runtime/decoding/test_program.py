"""A recorded step computes for other tokens and positions what the code computes that was recorded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from compress_kernels import native
from compress_kernels.layouts import PackedInteger
from compress_kernels.modules import PackedLinear
from torch import Tensor

from benchmarks.speed.cases import sparse_weight
from compress.runtime.decoding.attention import Unsupported
from compress.runtime.decoding.program import Program
from compress.runtime.decoding.record import Recorder, needed

native.load()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Step:
    """Every kind of instruction: kernels, what is done on numbers one by one, a write to the cache, torch's own operators."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table, self.weight = (
            torch.randn(*shape, generator=generator).to(dtype) for shape in ((20, 6, 40), (33, 40))
        )

    def __call__(self, token: Tensor, position: Tensor, cache: Tensor) -> Tensor:
        x = F.embedding(token[0], self.table.flatten(1)).view(1, 6, 40).transpose(0, 1)
        angle = position[None].to(x.dtype) * 0.1
        turned = torch.cat([-x[..., 20:], x[..., :20]], -1)
        x = x * angle.cos() + turned * angle.sin()
        kept = cache.index_copy_(1, position, x)
        mixed = F.silu(x) * F.gelu(x - 0.5, approximate="tanh") + F.layer_norm(x, (40,))
        y = (mixed.contiguous().view(6, 40)[:1]) @ self.weight.T
        return y.softmax(-1) + kept.sum().to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_tokens_and_positions(dtype: torch.dtype, threads: int) -> None:
    step = Step(dtype)
    cache = torch.zeros(6, 8, 40, dtype=dtype)
    program = Program(step, torch.tensor([[3]]), torch.tensor([0]), [cache])  # type: ignore[arg-type]
    wanted_cache = cache.clone()
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for token, position in ((7, 1), (19, 2), (7, 7)):
        program.token.fill_(token)
        program.position.fill_(position)
        wanted = step(torch.tensor([[token]]), torch.tensor([position]), wanted_cache)
        torch.testing.assert_close(program.run(), wanted, **close)
        torch.testing.assert_close(cache, wanted_cache, **close)
    assert program.kernels >= 12
    assert 0 < program.calls <= 12


def test_products_of_one_x_become_one(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (40, 24, 7)
    codes = [torch.randint(-(2**31), 2**31 - 1, (n, 16), generator=generator).int() for n in rows]
    scales = [torch.rand(n, 2, generator=generator).bfloat16() for n in rows]
    table = torch.randn(5, 128, generator=generator).bfloat16()

    def step(token: Tensor, position: Tensor) -> Tensor:
        x = F.embedding(token[0], table)
        made = [
            torch.ops.compress_kernels.native_packed(x, c, s, None, 4, 64, 128, False, None, None, None)
            for c, s in zip(codes, scales, strict=True)
        ]
        return torch.cat([made[0][:, :7] + made[2], F.silu(made[1])], -1)

    program = Program(step, torch.tensor([[1]]), torch.tensor([0]), [])  # type: ignore[arg-type]
    program.token.fill_(4)
    torch.testing.assert_close(
        program.run(), step(torch.tensor([[4]]), torch.tensor([0])), rtol=2e-2, atol=1e-2
    )
    # Rows by torch; the products; a sum, an activation and two copies.
    assert (program.kernels, program.calls) == (5, 1)


def test_pruned_products_of_one_x_become_one(threads: int) -> None:
    """Pairs of rows of several groups, beside rows as they lie on disk."""
    torch.manual_seed(0)
    shapes = ((48, 64), (32, 128), (16, "channel"), (7, 64))
    made = [sparse_weight((n, 256), "bitmask", PackedInteger(4, group)) for n, group in shapes]  # type: ignore[arg-type]
    layers = [PackedLinear(layout, (n, 256), t) for (layout, t), (n, _) in zip(made, shapes, strict=True)]
    interleaved = [layer.prepare().operands.interleaved for layer in layers]
    assert interleaved == [native.load().vectorised] * 3 + [False]
    weight = torch.cat([layer.dequantize(torch.float32) for layer in layers])
    table = torch.randn(5, 256).bfloat16()

    def step(token: Tensor, position: Tensor) -> Tensor:
        x = F.embedding(token[0], table)
        return torch.cat([layer(x) for layer in layers], -1)

    program = Program(step, torch.tensor([[3]]), torch.tensor([0]), [])  # type: ignore[arg-type]
    for token in (4, 1):
        program.token.fill_(token)
        torch.testing.assert_close(
            program.run().float(), table[token : token + 1].float() @ weight.T, rtol=1e-2, atol=1e-2
        )


def test_a_token_that_there_is_not_raises_and_the_next_one_runs(threads: int) -> None:
    step = Step(torch.float32)
    program = Program(step, torch.tensor([[3]]), torch.tensor([0]), [torch.zeros(6, 8, 40)])  # type: ignore[arg-type]
    wanted = program.logits.clone()
    program.position.fill_(8)
    with pytest.raises((RuntimeError, ValueError), match="outside the cache"):
        program.run()
    program.position.fill_(0)
    torch.testing.assert_close(program.run(), wanted)


def test_what_reads_values_is_not_recorded() -> None:
    with pytest.raises(Unsupported, match="reads values"):
        Program(lambda token, position: token * int(token), torch.tensor([[1]]), torch.tensor([0]), [])  # type: ignore[arg-type]


def test_what_nothing_depends_on_is_left_out() -> None:
    x, kept = torch.ones(3), torch.zeros(3)
    with Recorder() as recorder:
        torch.exp(x)
        result = x[:2].neg() + 1
        kept.add_(x)
    assert [call.name for call in recorder.calls] == ["aten::exp", "aten::neg", "aten::add", "aten::add_"]
    assert [call.name for call in needed(recorder.calls, result)] == ["aten::neg", "aten::add", "aten::add_"]
