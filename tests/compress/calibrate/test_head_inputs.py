"""Inputs of the output head: those that a hook on the whole model sees, whatever the family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.activations import ActivationScheme
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compress.calibrate.capture import CannotStream
from compress.calibrate.head_inputs import head_forward, head_reached, observe_head
from compress.calibrate.simulate import InputRounding
from compress.calibrate.walk import walk_blocks
from compress.calibrate.whole_model import WholeModelStream
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton

FAMILIES = ["llama", "llama_tied", "gpt2", "opt", "gpt_neox", "gemma3", "mixtral"]


def token_ids() -> Tensor:
    return torch.randint(2, 256, (3, 12), generator=torch.Generator().manual_seed(0))


def watched(folder: Path, ids: Tensor) -> Tensor:
    """What transformers hands the head of the whole model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(ids, use_cache=False)
    return seen[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_inputs_behind_the_last_block_are_the_models(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    folder = tiny_model(family)
    skeleton = open_skeleton(open_source(folder))
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    with walk_blocks(skeleton, token_ids(), batch_size=2, through_last=True, dense=True, **options) as walk:
        for index in walk:
            walk.stream.advance_dense(index)
        with skeleton.loaded_rest(**options):
            pairs = list(walk.stream.head_inputs())
    expected = watched(folder, token_ids())
    for column in (0, 1):
        found = torch.cat([pair[column] for pair in pairs])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_a_model_that_runs_as_a_whole_hands_the_same(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("llama")
    skeleton = open_skeleton(open_source(folder))
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    for index in range(2):
        skeleton.load_block(index, **options)
    with WholeModelStream(skeleton, token_ids(), **options) as stream:
        stream.prepare()
        ((inputs, dense),) = stream.head_inputs()
    torch.testing.assert_close(inputs, watched(folder, token_ids()), rtol=1e-4, atol=1e-5)
    assert dense is inputs


def test_the_product_with_the_vocabulary_is_not_computed(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    skeleton.load_rest(device="cpu", dtype=torch.float32)  # the head stays on meta
    assert skeleton.model.lm_head.weight.is_meta
    with head_forward(skeleton.model, skeleton.blocks) as forward:
        hidden = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(forward(token_ids(), hidden), skeleton.model.model.norm(hidden))


def test_a_head_that_is_not_called_is_refused() -> None:
    class Reads(nn.Module):
        """Multiplies by the head's weight without calling it."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 8, bias=False)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.head.weight.T

    model = Reads()
    with head_reached(model) as run, pytest.raises(CannotStream, match="Reads does not call its output head"):
        run(partial(model, torch.zeros(2, 4)))


def test_moments_are_means_over_all_tokens() -> None:
    inputs = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
    pairs = [(inputs[:2], 2 * inputs[:2]), (inputs[2:], 2 * inputs[2:])]
    found = observe_head(iter(pairs), frozenset({"gram", "cross"}))
    rows = inputs.double().reshape(-1, 4)
    assert found.tokens == 15
    assert found.gram is not None
    assert found.cross is not None
    torch.testing.assert_close(found.gram.double(), rows.T @ rows / 15)
    torch.testing.assert_close(found.cross.double(), 2 * rows.T @ rows / 15)


def test_moments_are_those_of_rounded_inputs_where_a_server_rounds() -> None:
    inputs = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))
    rounding = InputRounding(ActivationScheme(8, "int", True, "token", None, True, None))
    found = observe_head(iter([(inputs, None)]), frozenset({"mean_abs"}), rounding=rounding)
    assert found.mean_abs is not None
    torch.testing.assert_close(found.mean_abs, rounding(inputs).abs().reshape(-1, 4).mean(0))
    assert not torch.equal(found.mean_abs, inputs.abs().reshape(-1, 4).mean(0))
