"""Rounded inputs in calibration: what layers and experts multiply, what observers see, and the dense model untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.activations import ActivationScheme, fake_quantize
from torch import nn

from compress.calibrate.simulate import InputRounding, Simulation
from compress.calibrate.walk import walk_blocks
from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton

COARSE = ActivationScheme(bits=3)
TOKENS = torch.arange(2, 50).view(3, 16) * 5 % 250


def opened(tiny_model: Callable[..., Path], family: str) -> Skeleton:
    return open_skeleton(open_source(tiny_model(family)))


def simulation_of(skeleton: Skeleton, index: int = 0) -> Simulation:
    views = {view.name: view for view in skeleton.block_views(index) if view.kind in ("linear", "expert")}
    simulation = Simulation()
    simulation.set(index, views, dict.fromkeys(views, InputRounding(COARSE)))
    return simulation


class Wrapped(nn.Module):
    """The slow reference: a linear layer that rounds its input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(fake_quantize(x, COARSE), self.linear.weight, self.linear.bias)


def first_outputs(skeleton: Skeleton, simulation: Simulation | None) -> torch.Tensor:
    with walk_blocks(skeleton, TOKENS, device="cpu", dtype=torch.float32, simulation=simulation) as walk:
        for index in walk:
            return torch.cat(list(walk.stream.run(index)))
    raise AssertionError


def test_linears_multiply_rounded_inputs(tiny_model: Callable[..., Path]) -> None:
    skeleton = opened(tiny_model, "llama")
    found = first_outputs(skeleton, simulation_of(skeleton))
    with walk_blocks(skeleton, TOKENS, device="cpu", dtype=torch.float32) as walk:
        next(iter(walk))
        block: Any = skeleton.block_module(0)
        for parent in (block.self_attn, block.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Wrapped(child))
        expected = torch.cat(list(walk.stream.run(0)))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_multiply_rounded_inputs(family: str, tiny_model: Callable[..., Path]) -> None:
    skeleton = opened(tiny_model, family)
    experts = {view.name: view for view in skeleton.block_views(0) if view.kind == "expert"}
    simulation, identity = Simulation(), Simulation()
    simulation.set(0, experts, dict.fromkeys(experts, InputRounding(COARSE)))
    identity.set(0, experts, dict.fromkeys(experts, InputRounding(ActivationScheme(8))))
    plain = first_outputs(skeleton, None)
    coarse, fine = first_outputs(skeleton, simulation), first_outputs(skeleton, identity)
    assert 0 < float((fine - plain).norm()) < 0.1 * float((coarse - plain).norm())


def test_observers_see_what_is_multiplied_and_q_k_v_share_it(tiny_model: Callable[..., Path]) -> None:
    skeleton = opened(tiny_model, "llama")
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    needs = {name: frozenset({"sample"}) for name in names}
    with walk_blocks(
        skeleton, TOKENS, device="cpu", dtype=torch.float32, simulation=simulation_of(skeleton)
    ) as walk:
        next(iter(walk))
        rounded = walk.stream.observe(0, needs)
        walk.stream.simulation = Simulation()
        plain = walk.stream.observe(0, needs)
    assert rounded[names[0]] is rounded[names[1]] is rounded[names[2]]
    expected = fake_quantize(plain[names[0]].sample, COARSE)
    assert torch.allclose(rounded[names[0]].sample, expected, atol=1e-6)


def test_the_dense_activations_are_not_rounded(tiny_model: Callable[..., Path]) -> None:
    skeleton = opened(tiny_model, "llama")
    with walk_blocks(
        skeleton, TOKENS, device="cpu", dtype=torch.float32, dense=True, simulation=simulation_of(skeleton)
    ) as walk:
        for index in walk:
            dense = torch.cat(list(walk.stream.run(index, dense=True)))
            rounded = torch.cat(list(walk.stream.run(index)))
            break
    assert torch.equal(dense, first_outputs(skeleton, None))
    assert not torch.allclose(dense, rounded, atol=1e-4)


def test_hooks_are_gone_afterwards(tiny_model: Callable[..., Path]) -> None:
    skeleton = opened(tiny_model, "mixtral")
    first_outputs(skeleton, simulation_of(skeleton))
    assert not any(module._forward_pre_hooks for module in skeleton.model.modules())


def test_gradients_pass_straight_through() -> None:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rounded = InputRounding(COARSE)(x)
    rounded.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.allclose(rounded, fake_quantize(x.detach(), COARSE))
