"""Rules for operators, each on a small function: which spaces stay rotatable, and which are refused for what.

The witness for "stays rotatable" is :mod:`tests.compress.transforms.test_rotation`, where whole models compute the same.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from compress.transforms.tracing.labels import Labels
from compress.transforms.tracing.operators import apply_rule
from compress.transforms.tracing.spaces import Space

Build = Callable[[Tensor], Tensor]


class _Watch(TorchDispatchMode):
    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self._labels = labels

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        apply_rule(self._labels, func, args, dict(kwargs or {}), result)
        return result


class World:
    """A stream of 8 features that the embedding ``E`` writes, and parameters to work with."""

    def __init__(self) -> None:
        shapes = {"E": (16, 8), "R": (6, 8), "W": (8, 6), "S": (8, 8), "g": (8,), "b": (8,), "X": (4, 6, 8)}
        self.parameters = {name: torch.empty(*shape, device="meta") for name, shape in shapes.items()}
        self.labels = Labels({id(tensor): name for name, tensor in self.parameters.items()})

    def space(self, work: Callable[..., object]) -> Space:
        """The stream's space after ``work(x, **parameters)``; x is ``[2, 3, 8]``."""
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _Watch(self.labels):
            x = F.embedding(torch.zeros(2, 3, dtype=torch.long, device="meta"), self.parameters["E"])
            work(x, self.parameters)
        self.labels.settle()
        return self.labels.spaces["E", 1].root


def _norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


COMMUTES: dict[str, Callable[..., object]] = {
    "a layer reads it": lambda x, p: F.linear(x, p["R"]),
    "a scale of its norm": lambda x, p: F.linear(_norm(x) * p["g"], p["R"]),
    "one plus a scale": lambda x, p: F.linear(_norm(x) * (p["g"] + 1.0), p["R"]),
    "a square root of a sum": lambda x, p: F.linear(
        x / torch.linalg.vector_norm(x, dim=-1, keepdim=True), p["R"]
    ),
    "written and added": lambda x, p: x + F.linear(F.silu(F.linear(x, p["R"])), p["W"]),
    "a bias": lambda x, p: x + F.linear(F.silu(F.linear(x, p["R"])), p["W"], p["b"]),
    "a number": lambda x, p: F.linear(x * 3.0 / 2.0, p["R"]),
    "a number of each token": lambda x, p: F.linear(x * torch.empty(2, 3, 1, device="meta"), p["R"]),
    "some tokens": lambda x, p: F.linear(x[:, 1:], p["R"]),
    "other orders of tokens": lambda x, p: F.linear(x.transpose(0, 1).reshape(6, 8), p["R"]),
    "tokens put together": lambda x, p: F.linear(torch.cat([x, x], dim=1), p["R"]),
    "experts": lambda x, p: p["X"][torch.zeros(6, dtype=torch.long, device="meta")] @ x.reshape(6, 8, 1),
    "a sum onto zeros": lambda x, p: F.linear(
        torch.zeros(6, 8, device="meta").index_add_(
            0, torch.zeros(6, dtype=torch.long, device="meta"), x.reshape(6, 8)
        ),
        p["R"],
    ),
    "masked by token": lambda x, p: F.linear(
        x.masked_fill(torch.zeros(2, 3, 1, dtype=torch.bool, device="meta"), 0.0), p["R"]
    ),
}


@pytest.mark.parametrize("name", COMMUTES)
def test_it_stays_rotatable(name: str) -> None:
    space = World().space(COMMUTES[name])
    assert not space.refusal
    assert space.readers
    assert not space.keeps_mean


KEEPS_MEAN: dict[str, Callable[..., object]] = {
    "layer norm": lambda x, p: F.linear(F.layer_norm(x, (8,), p["g"], p["b"]), p["R"]),
    "by hand": lambda x, p: F.linear((x - x.mean(-1, keepdim=True)) * p["g"] + p["b"], p["R"]),
    "a number added": lambda x, p: F.linear(x + 1.0, p["R"]),
}


@pytest.mark.parametrize("name", KEEPS_MEAN)
def test_the_vector_of_ones_has_to_stay(name: str) -> None:
    space = World().space(KEEPS_MEAN[name])
    assert not space.refusal
    assert space.keeps_mean
    (reader,) = space.readers
    expected = None if name == "a number added" else ("g", "b")
    assert (None if reader.norm is None else (reader.norm.weight, reader.norm.bias)) == expected


def _through_a_view(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    whole = torch.zeros(2, 3, 8, device="meta")
    whole[:, :2] = x[:, :2]
    return F.linear(whole + x, p["R"])


REFUSED: dict[str, tuple[Callable[..., object], str]] = {
    "an activation": (lambda x, p: F.silu(x), "computes 'silu'"),
    "a gate of itself": (lambda x, p: x * F.silu(F.linear(x, p["S"])), "multiplies|of something else"),
    "a vector": (lambda x, p: x * torch.empty(8, device="meta"), "of something else"),
    "a vector added": (lambda x, p: x + torch.empty(8, device="meta"), "of something else"),
    "a scaled norm added": (lambda x, p: x + _norm(x) * p["g"], "g scales it"),
    "two scales": (lambda x, p: F.linear(_norm(x) * p["g"] * p["b"], p["R"]), "of something else"),
    "half of its features": (
        lambda x, p: F.linear(x[..., :4], p["R"][:, :4]),
        "cuts its features|some of its",
    ),
    "another layer reads other vectors": (
        lambda x, p: (F.linear(x, p["R"]), F.linear(torch.empty(2, 8, device="meta"), p["R"])),
        "multiplies R by other vectors",
    ),
    "products of two": (lambda x, p: x @ x.transpose(1, 2), "by what is no parameter"),
    "features in a row": (lambda x, p: torch.cat([x, x], dim=-1), "computes 'cat'"),
    "one norm for two spaces": (
        lambda x, p: (F.linear(_norm(x) * p["g"], p["R"]), torch.empty(8, device="meta") * p["g"]),
        "computes 'mul'",
    ),
    "a cube": (lambda x, p: x.pow(3), "computes 'pow'"),
    "squares that are no norm": (lambda x, p: F.linear(x * x, p["R"]), "squares"),
    "the largest feature": (lambda x, p: x.amax(-1), "computes 'amax'"),
    "a part of a layer": (
        lambda x, p: F.linear(x, p["R"]) + F.linear(x[..., :4], p["R"][:, :4]),
        "part|cuts",
    ),
    "a view that is written": (_through_a_view, "computes 'copy'"),
    "scaled in place": (lambda x, p: F.linear(x.mul_(p["g"]), p["R"]), "computes 'mul'"),
    "two layers through two norms": (
        lambda x, p: (F.linear(x * p["g"], p["R"]), F.linear(x * p["b"], p["R"])),
        "several norms",
    ),
    "a head of other vectors": (
        lambda x, p: torch.empty(2, 8, device="meta") @ p["E"].T,
        "multiplies E by other",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name: str) -> None:
    work, reason = REFUSED[name]
    refusal = World().space(work).refusal
    assert refusal
    assert any(part in refusal for part in reason.split("|")), refusal


def test_values_of_heads_are_cut_and_joined_again() -> None:
    world = World()

    def work(x: Tensor, p: dict[str, Tensor]) -> None:
        values = F.linear(x, p["S"]).view(2, 3, 4, 2).transpose(1, 2)
        mixed = torch.empty(2, 4, 3, 3, device="meta") @ values
        F.linear(mixed.transpose(1, 2).reshape(2, 3, 8), p["W"].T)

    world.space(work)
    space = world.labels.spaces["S", 0].root
    assert not space.refusal
    assert (space.size, space.block) == (8, 2)
    assert {(one.parameter, one.dim) for one in space.readers} == {("W", 0)}


def test_a_part_of_a_fused_layer_is_a_space_of_its_own() -> None:
    world = World()

    def work(x: Tensor, p: dict[str, Tensor]) -> None:
        first, second = F.linear(x, p["S"]).split([2, 6], dim=-1)
        F.silu(first)
        F.linear(second, p["R"].T)

    world.space(work)
    parts = [
        space.root for space in world.labels.every_space() if space.root.size == 6 and space.root.writers
    ]
    rows = {(one.parameter, one.start, one.stop) for space in parts for one in space.writers}
    assert ("S", 2, 8) in rows
