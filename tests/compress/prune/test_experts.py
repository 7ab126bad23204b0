"""Mixtures with fewer experts: plain models whose tensors are the kept experts', renumbered and cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from compress.api import compress, plan, verify
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.prune.expert_saliency import expert_saliency
from compress.prune.experts import RoutedExperts, routed_experts
from compress.recipe.recipe import Recipe

from .conftest import DEEPSEEK


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("Some experts say little that the others do not say. " * 100, encoding="utf-8")
    return path


def recipe(**changes: Any) -> Recipe:
    return Recipe.parse({"name": "test", "calibrate": {"samples": 4, "length": 24}, **changes})


def kept_of(out: Path) -> list[list[int]]:
    record = json.loads((out / "compress.json").read_text())["plan"]["width_pruned"]["kept"]["experts"]
    return [[place for place in range(16) if int(bits, 16) >> place & 1] for bits in record]


CASES: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "experts with tensors of their own": ("mixtral", {}, "num_local_experts", 2),
    "many of them": ("qwen3_moe", {"num_experts": 8}, "num_experts", 4),
    "all in one tensor, biases": ("gpt_oss", {}, "num_local_experts", 2),
    "routing groups": ("llama", DEEPSEEK, "n_routed_experts", 4),
}


@pytest.mark.parametrize("case", list(CASES))
def test_what_stays_is_the_source_renumbered(
    tiny_model: Callable[..., Path], tmp_path: Path, text: Path, case: str
) -> None:
    family, changes, setting, left = CASES[case]
    source, out = tiny_model(family, **changes), tmp_path / "out"
    result = compress(source, recipe(width_pruning={"experts": 0.5}), out, data=str(text), device="cpu")
    assert result.report.bytes.planned == result.report.bytes.actual
    verify(out, source)
    small, dense = (AutoModelForCausalLM.from_pretrained(path) for path in (out, source))
    assert getattr(small.config, setting) == left
    kept, blocks = kept_of(out), small.model.layers
    mixtures = [index for index, block in enumerate(blocks) if hasattr(block.mlp, "experts")]
    wanted = dense.state_dict()
    assert len(kept) == len(mixtures)
    assert all(len(stay) == left for stay in kept)
    cut = 0
    for name, tensor in small.state_dict().items():
        other = wanted[name]
        for stay, index in zip(kept, mixtures, strict=True):
            if name.startswith(f"model.layers.{index}.") and other.shape != tensor.shape:
                assert tensor.shape[0] == left
                other, cut = other[stay], cut + 1
        torch.testing.assert_close(tensor, other, rtol=0, atol=0)
    assert cut >= 3 * len(mixtures)


def test_saliency_is_the_mean_of_weight_times_norm(tiny_model: Callable[..., Path]) -> None:
    """arXiv:2510.13999 by plain products, in fp32, with the inputs that plain transformers gives the mixture."""
    path = tiny_model("mixtral")
    tokens = torch.arange(2, 98).view(4, 24)
    skeleton = open_skeleton(open_source(path))
    found = expert_saliency(
        skeleton, routed_experts(skeleton, 0.5), tokens, "reap", device="cpu", dtype=torch.float32
    )
    counted = expert_saliency(
        skeleton, routed_experts(skeleton, 0.5), tokens, "frequency", device="cpu", dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    seen: dict[int, torch.Tensor] = {}
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_pre_hook(lambda _, args, index=index: seen.update({index: args[0]}))
    with torch.no_grad():
        model(tokens)
    for index, block in enumerate(model.model.layers):
        x, experts = seen[index].reshape(-1, 64), block.mlp.experts
        weights, chosen = F.linear(x, block.mlp.gate.weight).softmax(-1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        for expert in range(4):
            rows, places = torch.where(chosen == expert)
            gate, up = F.linear(x[rows], experts.gate_up_proj[expert]).chunk(2, -1)
            output = F.linear(F.silu(gate) * up, experts.down_proj[expert])
            mean = (output.norm(dim=-1) * weights[rows, places]).mean() if len(rows) else torch.tensor(0.0)
            assert found[index][expert] == pytest.approx(float(mean.detach()), rel=1e-4)
            assert counted[index][expert] == pytest.approx(len(rows) / 96)


def test_the_most_salient_stay_in_every_routing_group() -> None:
    routed = RoutedExperts(total=8, kept=4, groups=2, owners={}, config={}, dims={})
    assert routed.best([8, 7, 6, 5, 1, 4, 3, 2]) == [0, 1, 5, 6]
    assert RoutedExperts(8, 4, 1, {}, {}, {}).best([8, 7, 6, 5, 1, 4, 3, 2]) == [0, 1, 2, 3]
    assert RoutedExperts(4, 2, 1, {}, {}, {}).best([0, 0, 0, 1]) == [0, 3]


def test_no_fewer_stay_than_a_token_is_sent_to(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("mixtral")))
    assert routed_experts(skeleton, 0.01).kept == 2
    grouped = open_skeleton(open_source(tiny_model("llama", **DEEPSEEK)))
    assert routed_experts(grouped, 0.01).kept == 4  # two of the one group that routing takes


def test_pruned_experts_are_quantized_and_planned_alike(
    tiny_model: Callable[..., Path], tmp_path: Path, text: Path
) -> None:
    steps = [{"targets": ["experts"], "quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"}]
    chosen = recipe(width_pruning={"experts": 0.5}, steps=steps)
    planned = plan(tiny_model("qwen3_moe", num_experts=8), chosen)
    out = tmp_path / "out"
    result = compress(tiny_model("qwen3_moe", num_experts=8), chosen, out, data=str(text), device="cpu")
    assert sum(shard.nbytes for shard in planned.shards) == result.report.bytes.planned
    verify(out, tiny_model("qwen3_moe", num_experts=8))
    assert "Of the routed experts of every block 4 stay, as they were." in (out / "report.html").read_text()


def test_attention_groups_go_behind_the_experts(
    tiny_model: Callable[..., Path], tmp_path: Path, text: Path
) -> None:
    source, out = tiny_model("mixtral"), tmp_path / "out"
    compress(source, recipe(width_pruning={"experts": 0.5, "groups": 0.5}), out, data=str(text), device="cpu")
    verify(out, source)
    small = AutoModelForCausalLM.from_pretrained(out)
    assert (small.config.num_local_experts, small.config.num_key_value_heads) == (2, 1)


def test_sentences(tiny_model: Callable[..., Path], tmp_path: Path, text: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="has no routed experts that are known here"):
        compress(tiny_model("llama"), recipe(width_pruning={"experts": 0.5}), out, data=str(text))
    with pytest.raises(UserError, match=r"prunes nothing: width_pruning.experts 0.99 keeps all 4 experts"):
        compress(tiny_model("mixtral"), recipe(width_pruning={"experts": 0.99}), out, data=str(text))
    with pytest.raises(UserError, match="'experts_by' says which 'experts' stay"):
        recipe(width_pruning={"neurons": 0.5, "experts_by": "frequency"})
    assert not out.exists()


def test_experts_that_are_not_told_their_tokens(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = open_skeleton(open_source(tiny_model("mixtral")))
    monkeypatch.setattr("compress.prune.expert_saliency._is_routing", lambda _: False)
    with pytest.raises(UserError, match="does not tell the experts of block 0 which tokens are theirs"):
        expert_saliency(
            skeleton,
            routed_experts(skeleton, 0.5),
            torch.ones(1, 4, dtype=torch.int64),
            "reap",
            device="cpu",
            dtype=torch.float32,
        )
