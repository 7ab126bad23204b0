"""How alike experts are, beside plain products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.prune import expert_likeness as module
from compress.prune.expert_likeness import expert_likeness
from compress.prune.experts import routed_experts


@pytest.mark.parametrize("asked", [4096, 24])
def test_distances_are_those_of_outputs_token_by_token(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    """All tokens, and every fourth one, whatever the batches; in small parts."""
    monkeypatch.setattr(module, "TOKENS", asked)
    monkeypatch.setattr(module, "_ELEMENTS", 4 * 64 * 7)
    monkeypatch.setattr("compress.calibrate.stream.BATCH_TOKENS", {"cpu": 48})
    path = tiny_model("mixtral")
    tokens = torch.arange(2, 98).view(4, 24)
    skeleton = open_skeleton(open_source(path))
    found = expert_likeness(
        skeleton, routed_experts(skeleton, 0.5), tokens, device="cpu", dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    seen: dict[int, torch.Tensor] = {}
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_pre_hook(lambda _, args, index=index: seen.update({index: args[0]}))
    with torch.no_grad():
        model(tokens)
        for index, block in enumerate(model.model.layers):
            every, experts = seen[index].reshape(-1, 64), block.mlp.experts
            _, chosen = F.linear(every, block.mlp.gate.weight).topk(2)
            x = every[:: 96 // min(asked, 96)]
            outputs = []
            for expert in range(4):
                gate, up = F.linear(x, experts.gate_up_proj[expert]).chunk(2, -1)
                outputs.append(F.linear(F.silu(gate) * up, experts.down_proj[expert]))
                share = float((chosen == expert).sum()) / 96
                assert found[index].frequency[expert] == pytest.approx(share)
            for i in range(4):
                for j in range(4):
                    wanted = float((outputs[i] - outputs[j]).square().sum(-1).mean().sqrt())
                    assert float(found[index].distances[i, j]) == pytest.approx(wanted, rel=1e-3, abs=2e-4)
