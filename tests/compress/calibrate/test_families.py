"""The stream over real checkpoints of every family, loaded block by block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.calibrate.capture import base_of
from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton

DENSE = ["llama", "llama_tied", "qwen3", "mistral", "gemma3", "phi3", "gpt2", "opt", "gpt_neox"]
EXPERTS = ["mixtral", "qwen3_moe", "gpt_oss"]
NEEDS = frozenset({"gram"})


def last_block_outputs(folder: Path, block: str, tokens: Tensor) -> Tensor:
    """What the last block gives in the model that transformers loads whole."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outputs: list[Tensor] = []
    model.get_submodule(block).register_forward_hook(
        lambda module, args, output: outputs.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        base_of(model, block)(input_ids=tokens, use_cache=False)
    return outputs[0]


@pytest.mark.parametrize("family", [*DENSE, *EXPERTS])
def test_block_by_block(family: str, tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model(family)
    tokens = torch.randint(2, 256, (5, 40), generator=torch.Generator().manual_seed(0))
    skeleton = open_skeleton(open_source(folder))
    with BlockStream(skeleton, tokens, dtype=torch.float32, batch_size=2) as stream:
        stream.prepare()
        assert all(parameter.is_meta for parameter in skeleton.model.parameters())
        for index in range(len(skeleton.blocks)):
            views = skeleton.block_views(index)
            skeleton.load_block(index, device="cpu", dtype=torch.float32)
            found = stream.observe(index, {view.name: NEEDS for view in views})
            stream.advance(index)
            skeleton.release_block(index)
            assert set(found) == {view.name for view in views}
            for view in views:
                statistics = found[view.name]
                assert statistics.gram is not None
                assert statistics.gram.shape == (view.shape[1], view.shape[1])
                assert torch.equal(statistics.gram, statistics.gram.T)
                assert statistics.tokens == tokens.numel() or (
                    view.kind == "expert" and statistics.tokens < tokens.numel()
                )
            for group in skeleton.fused_groups(view for view in views if view.kind != "expert"):
                assert len({id(found[view.name]) for view in group}) == 1
        outputs = torch.cat([hidden for hidden, _ in stream.inputs(0)])
    expected = last_block_outputs(folder, skeleton.blocks[-1], tokens)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
