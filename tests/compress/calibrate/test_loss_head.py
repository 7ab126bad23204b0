"""Norm and head by themselves: the logits and the loss of the whole model, from the outputs of its last block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compress.calibrate.loss_head import head_loss, injection
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton

FAMILIES = ["llama", "llama_tied", "gpt2", "opt", "gpt_neox", "gemma3", "mixtral"]


def token_ids() -> Tensor:
    return torch.randint(2, 256, (3, 12), generator=torch.Generator().manual_seed(0))


def opened(folder: Path) -> tuple[Skeleton, nn.Module, Tensor]:
    """The skeleton, the whole model, and the outputs of its last block."""
    skeleton = open_skeleton(open_source(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outputs: list[Tensor] = []
    model.get_submodule(skeleton.blocks[-1]).register_forward_hook(
        lambda module, args, output: outputs.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        model(token_ids(), use_cache=False)
    return skeleton, model, outputs[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_whole_model(family: str, tiny_model: Callable[..., Path]) -> None:
    skeleton, model, outputs = opened(tiny_model(family))
    with torch.no_grad():
        logits = model(token_ids(), use_cache=False).logits[:, :-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), token_ids()[:, 1:].flatten())
    loss = head_loss(skeleton, token_ids(), outputs.split(2), device="cpu", dtype=torch.float32)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_gradients_reach_the_outputs_of_the_last_block(tiny_model: Callable[..., Path]) -> None:
    skeleton, model, outputs = opened(tiny_model("llama"))
    ours, theirs = (outputs.clone().requires_grad_(True) for _ in range(2))
    skeleton.load_rest(device="cpu", dtype=torch.float32, head=True)
    with injection(skeleton.model, skeleton.blocks) as inject:
        inject(token_ids(), ours).square().sum().backward()
    model.lm_head(model.model.norm(theirs)).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_blocks_are_back_afterwards(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    before = [skeleton.block_module(i) for i in (0, 1)]
    with pytest.raises(RuntimeError, match="stop"), injection(skeleton.model, skeleton.blocks):
        assert skeleton.block_module(0) is not before[0]
        raise RuntimeError("stop")
    assert [skeleton.block_module(i) for i in (0, 1)] == before


def test_a_model_that_fails_behind_its_blocks_is_refused(tiny_model: Callable[..., Path]) -> None:
    skeleton, _, outputs = opened(tiny_model("llama"))
    with (
        injection(skeleton.model, skeleton.blocks) as inject,
        pytest.raises(UserError, match="LlamaModel cannot be run behind its last block"),
    ):
        inject(token_ids(), outputs)  # its norm and head are not loaded
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
