"""Merged experts: nothing is lost where they are the same but for the order of their neurons, and all else is the mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.api import compress, plan, verify
from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Writer
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.calibration import draw_corpus, fit_recipe
from compress.prune.expert_likeness import Likeness, expert_likeness
from compress.prune.experts import RoutedExperts, routed_experts
from compress.prune.merge_experts import clusters_of, fewer_experts_again
from compress.recipe.recipe import Recipe

from .conftest import DEEPSEEK

TOKENS = torch.arange(2, 98).view(4, 24)


def recipe(**changes: Any) -> Recipe:
    width = {"experts": 0.5, "experts_by": "merge", **changes.pop("width_pruning", {})}
    calibrate = {"samples": 4, "length": 24}
    return Recipe.parse({"name": "test", "calibrate": calibrate, "width_pruning": width, **changes})


def record_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "compress.json").read_text())["plan"]["width_pruned"]
    return found


def numbers(bits: str) -> list[int]:
    return [place for place in range(16) if int(bits, 16) >> place & 1]


# -- experts that are the same but for the order of their neurons


def shuffled(model: Any, block: int, first: int, second: int) -> None:
    """Make an expert the same as another, its neurons in another order."""
    experts = model.model.layers[block].mlp.experts
    turned, alternate = experts.is_transposed, model.config.model_type == "gpt_oss"
    fused, down = experts.gate_up_proj, experts.down_proj
    count = down.shape[1 if turned else 2]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(block + second))
    both = torch.stack([2 * order, 2 * order + 1], 1).flatten() if alternate else None
    both = torch.cat([order, order + count]) if both is None else both
    with torch.no_grad():
        fused[second] = fused[first][:, both] if turned else fused[first][both]
        down[second] = down[first][order] if turned else down[first][:, order]
        if hasattr(experts, "down_proj_bias"):
            experts.gate_up_proj_bias[second] = experts.gate_up_proj_bias[first][both]
            experts.down_proj_bias[second] = experts.down_proj_bias[first]


def twins_of(tiny_model: Callable[..., Path], family: str, folder: Path, chosen: int) -> Path:
    """A mixture of 5 experts, 1 the same as 2 and 3 the same as 4, whose rows in the router differ by next to nothing, so that
    each of a pair has some tokens. To expert 0 goes every token where two are chosen, so that no pair is ever chosen together,
    and none where one is."""
    count = {"num_experts": 5} if family == "qwen3_moe" else {"num_local_experts": 5}
    base = tiny_model(family, num_experts_per_tok=chosen, **count)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.model.embed_tokens.weight[:, 0] = 1.0  # the same sign in every token
        for block, layer in enumerate(model.model.layers):
            layer.post_attention_layernorm.weight[0] = 1.0
            router = layer.mlp.router if family == "gpt_oss" else layer.mlp.gate
            if family == "gpt_oss":
                router.bias.zero_()
            router.weight[:, 0] = 0
            router.weight[0] = 0
            router.weight[0, 0] = 0.5 if chosen == 2 else -0.5
            for first, second in ((1, 2), (3, 4)):
                shuffled(model, block, first, second)
                router.weight[second] = router.weight[first]
                router.weight[second] += 1e-5 * torch.randn(
                    64, generator=torch.Generator().manual_seed(first)
                )
    model.save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("chosen", [1, 2])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_twins_become_one_and_nothing_is_lost(
    tiny_model: Callable[..., Path], tmp_path: Path, family: str, chosen: int
) -> None:
    source, out = twins_of(tiny_model, family, tmp_path / "source", chosen), tmp_path / "out"
    skeleton = open_skeleton(open_source(source))
    likeness = expert_likeness(
        skeleton, routed_experts(skeleton, 0.6), TOKENS, device="cpu", dtype=torch.float32
    )
    for one in likeness:
        assert all(share > 0 for share in one.frequency[1:])  # so that a mean of both is taken
        assert one.frequency[0] == (1 if chosen == 2 else 0)
    compress(source, recipe(width_pruning={"experts": 0.6}), out, device="cpu")
    for block in record_of(out)["merged"]["experts"]:
        assert sorted(map(numbers, block)) == [[0], [1, 2], [3, 4]]
    small, dense = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (out, source))
    with torch.no_grad():
        torch.testing.assert_close(small(TOKENS).logits, dense(TOKENS).logits, rtol=1e-3, atol=1e-4)


# -- any experts: the mean of matched neurons, and the rows of those that most tokens are sent to


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "experts with tensors of their own": ("mixtral", {}),
    "many of them": ("qwen3_moe", {"num_experts": 8}),
    "all in one tensor, biases": ("gpt_oss", {}),
    "routing groups": ("llama", DEEPSEEK),
}


def by_neuron(experts: dict[str, Tensor], turned: bool) -> Tensor:
    """fp64 ``[experts, neurons, …]``: rows of gate and up, and columns of down, of each neuron; biases."""
    fused, down = experts["gate_up_proj"].double(), experts["down_proj"].double()
    if turned:
        fused, down = fused.transpose(1, 2), down.transpose(1, 2)
    count = fused.shape[1] // 2
    gate, up = (fused[:, 0::2], fused[:, 1::2]) if turned else (fused[:, :count], fused[:, count:])
    parts = [gate, up, down.transpose(1, 2)]
    if "gate_up_proj_bias" in experts:
        parts += [experts["gate_up_proj_bias"].double()[:, side::2, None] for side in (0, 1)]
    return torch.cat(parts, 2)


@pytest.mark.parametrize("case", list(CASES))
def test_experts_are_means_of_clusters(tiny_model: Callable[..., Path], tmp_path: Path, case: str) -> None:
    family, changes = CASES[case]
    source, out = tiny_model(family, **changes), tmp_path / "out"
    chosen = recipe()
    result = compress(source, chosen, out, device="cpu")
    assert result.report.bytes.planned == result.report.bytes.actual
    assert sum(shard.nbytes for shard in plan(source, chosen).shards) == result.report.bytes.planned
    verify(out, source)
    small, dense = (AutoModelForCausalLM.from_pretrained(path) for path in (out, source))
    skeleton = open_skeleton(open_source(source))
    routed = routed_experts(skeleton, 0.5)
    record, blocks = record_of(out), list(routed.owners)
    parts = dense.state_dict()
    for place, index in enumerate(blocks):
        leaders = numbers(record["kept"]["experts"][place])
        clusters = [numbers(bits) for bits in record["merged"]["experts"][place]]
        assert sorted(chain(*clusters)) == list(range(routed.total))
        size, stay = routed.total // routed.groups, routed.kept // routed.groups
        for number, (leader, members) in enumerate(zip(leaders, clusters, strict=True)):
            assert leader in members
            assert {member // size for member in members} == {number // stay}  # within a routing group
        prefix = f"model.layers.{index}."
        for name, tensor in small.state_dict().items():
            if name.startswith(prefix) and ".experts." not in name:
                wanted = parts[name] if parts[name].shape == tensor.shape else parts[name][leaders]
                torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
        experts, whole = (
            {
                leaf.rpartition(".")[2]: t
                for leaf, t in one.state_dict().items()
                if f"{index}.mlp.experts." in leaf
            }
            for one in (small, dense)
        )
        turned = family == "gpt_oss"
        found, neurons = by_neuron(experts, turned), by_neuron(whole, turned)
        frequency = frequencies(skeleton, routed)[place]
        for number, (leader, members) in enumerate(zip(leaders, clusters, strict=True)):
            assert frequency[leader] == max(frequency[member] for member in members)
            if len(members) == 1:
                assert torch.equal(found[number], neurons[leader])
                continue
            total = sum(frequency[member] for member in members)
            mean = torch.zeros_like(found[number])
            for member in members:
                _, order = linear_sum_assignment(neurons[leader] @ neurons[member].T, maximize=True)
                mean += frequency[member] / total * neurons[member][order]
            torch.testing.assert_close(found[number], mean, rtol=0.01, atol=1e-4)
            if turned:
                bias = sum(frequency[m] / total * whole["down_proj_bias"][m].float() for m in members)
                torch.testing.assert_close(
                    experts["down_proj_bias"][number].float(), bias, rtol=0.01, atol=1e-4
                )


def frequencies(skeleton: Skeleton, routed: RoutedExperts) -> list[list[float]]:
    """Those that the run had: of its own windows, in its dtype."""
    fitted, note = fit_recipe(recipe(), skeleton)
    tokens = draw_corpus(skeleton, fitted, 0, note).tokens
    found = expert_likeness(skeleton, routed, tokens, device="cpu", dtype=torch.bfloat16)
    return [list(one.frequency) for one in found]


def test_clusters_stay_in_their_routing_group_and_the_most_frequent_leads() -> None:
    points = torch.tensor([0.0, 5.0, 0.1, 5.1, 0.2, 5.2, 9.0, 5.3])
    likeness = Likeness([0.1, 0.2, 0.3, 0.2, 0, 0, 0, 0.4], (points[:, None] - points).abs())
    grouped = RoutedExperts(total=8, kept=4, groups=2, owners={}, config={}, dims={})
    assert clusters_of(grouped, likeness) == [(1, 3), (2, 0), (4,), (7, 5, 6)]
    alone = RoutedExperts(total=8, kept=3, groups=1, owners={}, config={}, dims={})
    assert clusters_of(alone, likeness) == [(2, 0, 4), (6,), (7, 1, 3, 5)]


def test_merged_experts_are_quantized_behind_groups_and_planned_alike(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = tiny_model("mixtral"), tmp_path / "out"
    steps = [{"targets": ["experts"], "quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"}]
    chosen = recipe(width_pruning={"groups": 0.5}, steps=steps)
    planned = plan(source, chosen)
    assert planned.reads_text
    assert any(
        note.startswith("The routed experts of every block are merged into 2:") for note in planned.notes
    )
    result = compress(source, chosen, out, device="cpu")
    assert sum(shard.nbytes for shard in planned.shards) == result.report.bytes.planned
    verify(out, source)
    page = (out / "report.html").read_text()
    assert page.count("The routed experts of every block are merged into 2, up to") == 1
    small = AutoModelForCausalLM.from_pretrained(out)
    assert (small.config.num_local_experts, small.config.num_key_value_heads) == (2, 1)


def test_a_run_killed_behind_the_merging_gives_the_same_bytes(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_model("qwen3_moe", num_experts=8)

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish_block", killed)
        with pytest.raises(RuntimeError, match="killed"):
            compress(source, recipe(), tmp_path / "out", device="cpu")
    assert (tmp_path / "out.partial.experts").is_dir()
    for out in ("out", "whole"):
        compress(source, recipe(), tmp_path / out, device="cpu")
    first, second = (tmp_path / out / "model.safetensors" for out in ("out", "whole"))
    assert first.read_bytes() == second.read_bytes()
    assert not (tmp_path / "out.partial.experts").exists()


def test_a_record_of_another_model_is_refused(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("mixtral")))
    good = {"kept": {"experts": ["3", "9"]}, "errors": {}, "merged": {"experts": [["5", "a"], ["1", "e"]]}}
    again = fewer_experts_again(skeleton, 0.5, good)
    assert again.width_pruned == good
    of_the_first = {name for name in again.unread if ".layers.0." in name}
    assert (
        len(again.unread) == 9
    )  # three of each expert that is a mean: two in the first block, one in the other
    assert len(of_the_first) == 6
    for clusters in ([["5", "8"], ["1", "e"]], [["5", "a", "0"], ["1", "e"]], [["5", "a"]]):
        with pytest.raises((UserError, ValueError)):
            fewer_experts_again(skeleton, 0.5, {**good, "merged": {"experts": clusters}})


def test_what_cannot_be_merged_is_refused_before_any_work(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.pipeline.preparation.expert_likeness", None)
    with monkeypatch.context() as patch:
        patch.setattr("compress.linalg.matching.find_spec", lambda _: None)
        with pytest.raises(UserError, match=r"pip install 'compress-llm\[merge\]'"):
            compress(tiny_model("mixtral"), recipe(), tmp_path / "out", device="cpu")
    monkeypatch.setattr("compress.prune.merge_experts.gate_and_up", lambda *_: None)
    with pytest.raises(UserError, match="hold their neurons in a way that is not known here; prune them by"):
        compress(tiny_model("mixtral"), recipe(), tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match="'experts_by' says which 'experts' stay or become one"):
        Recipe.parse({"name": "test", "width_pruning": {"neurons": 0.5, "experts_by": "merge"}})
