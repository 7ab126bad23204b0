"""Rates from made-up clocks, and the bytes of a loaded model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.evaluation import speed
from compress.evaluation.speed import decode_rate, loaded_bytes, prefill_rate


class Clockwork:
    """A model that takes a second for each token of a prompt and ``pace`` seconds for each new one."""

    device = torch.device("cpu")

    def __init__(self, clock: Any, pace: float = 0.5) -> None:
        self.clock, self.pace, self.calls = clock, pace, 0
        self.prompts: list[int] = []

    def __call__(self, input_ids: Tensor, use_cache: bool) -> None:
        assert not use_cache
        self.calls += 1
        # The first call is slower, as first calls are.
        self.clock.now += input_ids.numel() * (3.0 if self.calls == 1 else 1.0)

    def can_generate(self) -> bool:
        return True

    def generate(self, prompt: Tensor, attention_mask: Tensor, generation_config: Any) -> None:
        assert attention_mask.shape == prompt.shape
        assert generation_config.min_new_tokens == generation_config.max_new_tokens
        self.prompts.append(prompt.numel())
        self.clock.now += prompt.numel() + self.pace * generation_config.max_new_tokens


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    state = SimpleNamespace(now=0.0)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: state.now)
    return state


def test_prefill_is_the_best_of_three(clock: Any) -> None:
    model: Any = Clockwork(clock)
    assert prefill_rate(model, torch.arange(32)) == 1.0
    assert model.calls == 3


@pytest.mark.parametrize("length", [8, 100])
def test_decoding_does_not_count_the_prompt(clock: Any, length: int) -> None:
    model: Any = Clockwork(clock)
    assert decode_rate(model, torch.arange(length), new_tokens=10) == pytest.approx(2.0)
    assert set(model.prompts) == {min(length, 16)}


def test_a_model_that_cannot_generate(clock: Any) -> None:
    model: Any = Clockwork(clock)
    model.can_generate = lambda: False
    assert decode_rate(model, torch.arange(8)) is None


def test_shared_tensors_count_once() -> None:
    model = nn.Module()
    model.first = nn.Linear(4, 8, bias=False)
    model.second = nn.Linear(4, 8, bias=False)
    model.second.weight = model.first.weight
    model.register_buffer("scale", torch.ones(3, dtype=torch.bfloat16))
    model.register_buffer("empty", torch.empty(0))
    model.register_buffer("elsewhere", torch.empty(100, device="meta"))
    assert loaded_bytes(model) == 4 * 8 * 4 + 3 * 2
