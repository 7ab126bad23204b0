"""Folds are found in real blocks and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.calibrate.capture import call_block
from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.transforms.fold import Edit, find_fold

TOKENS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))

FOUND = {
    "llama": {"q_proj", "gate_proj", "down_proj"},
    "qwen3": {"q_proj", "gate_proj", "down_proj"},
    "gpt2": {"c_attn", "c_fc"},
    "opt": {"q_proj", "fc1", "out_proj"},
    "gpt_neox": {"query_key_value"},
    "mixtral": {"q_proj"},
}
"""Family → for each fold, a weight whose input it scales. gpt_neox's parallel halves have a norm each."""


@pytest.mark.parametrize("family", FOUND)
def test_folds_change_nothing(tiny_model: Callable[..., Path], family: str) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    found = set()
    with BlockStream(skeleton, TOKENS, dtype=torch.float32) as stream:
        stream.prepare()
        skeleton.load_block(0, device="cpu", dtype=torch.float32)
        block, prefix = skeleton.block_module(0), skeleton.blocks[0]
        parameters = {f"{prefix}.{name}": value for name, value in block.named_parameters()}
        editable = frozenset(name for name, value in parameters.items() if value.ndim == 1)
        hidden, kwargs = next(iter(stream.inputs(0)))

        def run() -> torch.Tensor:
            with torch.no_grad():
                return call_block(block, hidden.clone(), kwargs)

        before = run()
        views = [view for view in skeleton.block_views(0) if view.kind != "expert"]
        for stage in skeleton.stages(0):
            group = [view for view in stage if view.kind != "expert"]
            fold = find_fold(group, views, parameters, editable, run) if group else None
            assert torch.equal(run(), before), "the search puts everything back"
            if fold is not None:
                found |= {view.name.rpartition(".")[2] for view in group}
                scale = torch.exp2(torch.randint(-2, 3, (group[0].shape[1],)).float())
                fold.apply(scale, parameters)
                assert torch.allclose(run(), before, atol=1e-5)
                before = run()
    assert FOUND[family] <= found


def test_edits_of_vectors() -> None:
    vector, scale = torch.randn(8).bfloat16(), torch.exp2(torch.arange(8.0) - 4)
    assert torch.equal(Edit(scale).apply(vector) * scale, vector.float())
    plus_one = Edit(scale, 1.0).apply(vector.float())
    assert torch.allclose((1 + plus_one) * scale, 1 + vector.float())
