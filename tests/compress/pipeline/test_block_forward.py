"""A block run with other weights in the place of its own: the values, and the gradients by each weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.models.views import WeightView
from compress.pipeline.block_forward import BlockRun, put_together

TOKENS = torch.randint(2, 256, (3, 10), generator=torch.Generator().manual_seed(0))


def view(name: str, shape: tuple[int, int], **options: object) -> WeightView:
    expert = options.pop("expert", None)
    fields = {"rows": (0, shape[0], 1), **options}
    return WeightView(name, "p", "linear", 0, shape, expert, (), **fields)  # type: ignore[arg-type]


CASES: dict[str, tuple[tuple[int, ...], list[WeightView]]] = {
    "whole": ((6, 4), [view("w", (6, 4))]),
    "transposed": ((4, 6), [view("w", (6, 4), transposed=True)]),
    "q, k and v in one": (
        (12, 4),
        [
            view("q", (6, 4), rows=(0, 6, 1)),
            view("k", (3, 4), rows=(6, 9, 1)),
            view("v", (3, 4), rows=(9, 12, 1)),
        ],
    ),
    "gate and up in turn": (
        (8, 4),
        [view("gate", (4, 4), rows=(0, 8, 2)), view("up", (4, 4), rows=(1, 8, 2))],
    ),
    "two of three experts": ((3, 6, 4), [view("0", (6, 4), expert=0), view("2", (6, 4), expert=2)]),
    "transposed experts": ((2, 4, 6), [view("1", (6, 4), expert=1, transposed=True)]),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str) -> None:
    shape, views = CASES[case]
    generator = torch.Generator().manual_seed(0)
    parameter = torch.randn(shape, generator=generator)
    thetas = [torch.randn(v.shape, generator=generator).double().requires_grad_(True) for v in views]
    before = parameter.clone()
    whole = put_together(parameter, views, thetas)
    assert torch.equal(parameter, before)
    expected = before.clone()
    for v, theta in zip(views, thetas, strict=True):
        v.put(expected, theta.detach())
        assert torch.equal(v.get(whole), theta.detach().float())
    assert torch.equal(whole, expected)
    factor = torch.randn(shape, generator=generator)
    gradients = torch.autograd.grad((whole * factor).sum(), thetas)
    for v, gradient in zip(views, gradients, strict=True):
        assert gradient.dtype == torch.float64
        assert torch.equal(gradient.float(), v.get(factor))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_a_run_is_that_of_the_changed_block(tiny_model: Callable[..., Path], family: str) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    with BlockStream(skeleton, TOKENS, dtype=torch.float32, batch_size=2, dense=True) as stream:
        stream.prepare()
        skeleton.load_block(0, device="cpu", dtype=torch.float32)
        dense = list(stream.run(0))
        stream.advance_dense(0)
        views = {v.name: v for v in skeleton.block_views(0)}
        run = BlockRun(skeleton, stream, 0, views)
        thetas = {n: (0.5 * v.get(skeleton.parameter_of(v))).clone() for n, v in list(views.items())[::2]}
        untouched = {n: p.clone() for n, p in skeleton.block_module(0).named_parameters()}
        outputs = [run(batch, thetas) for batch in range(stream.batches)]
        for name, parameter in skeleton.block_module(0).named_parameters():
            assert torch.equal(parameter, untouched[name])
        for name, theta in thetas.items():
            views[name].put(skeleton.parameter_of(views[name]), theta)
        changed = list(stream.run(0))
        for (output, target), expected, original in zip(outputs, changed, dense, strict=True):
            torch.testing.assert_close(output, expected)
            torch.testing.assert_close(target, original)
            assert not torch.allclose(output, target)


def test_gradients_reach_each_weight(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    with BlockStream(skeleton, TOKENS, dtype=torch.float32, dense=True) as stream:
        stream.prepare()
        skeleton.load_block(0, device="cpu", dtype=torch.float32)
        stream.advance_dense(0)
        views = {v.name: v for v in skeleton.block_views(0)}
        thetas = {n: v.get(skeleton.parameter_of(v)).clone().requires_grad_(True) for n, v in views.items()}
        output, _ = BlockRun(skeleton, stream, 0, views)(0, thetas)
        ours = torch.autograd.grad(output.square().sum(), list(thetas.values()))
        parameters: list[Tensor] = [skeleton.parameter_of(v).requires_grad_(True) for v in views.values()]
        block, (hidden, kwargs) = skeleton.block_module(0), next(stream.inputs(0))
        result = block(hidden, **kwargs)
        result = result if isinstance(result, Tensor) else result[0]
        theirs = torch.autograd.grad(result.square().sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
