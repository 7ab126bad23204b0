"""Statistics against brute force in float64 over the inputs of the model run whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.calibrate.stream import BlockStream
from compress.errors import UserError
from compress.score.statistics import Statistics

Build = Callable[[str], Any]
NEEDS = frozenset({"diagonal", "gram", "mean", "mean_abs", "max_abs"})


def observe_all(skeleton: Any, tokens: Tensor, **options: Any) -> dict[str, Statistics]:
    """Statistics of every view of every block."""
    needs = {view.name: NEEDS for view in skeleton.views}
    found: dict[str, Statistics] = {}
    with BlockStream(skeleton, tokens, dtype=torch.float32, **{"batch_size": 2, **options}) as stream:
        stream.prepare()
        for index in range(len(skeleton.blocks)):
            found |= stream.observe(index, needs)
            stream.advance(index)
    return found


def recorded(model: nn.Module, owners: set[str], tokens: Tensor) -> dict[str, list[tuple[Any, ...]]]:
    """The positional arguments of some modules when the model runs whole."""
    seen: dict[str, list[tuple[Any, ...]]] = {owner: [] for owner in owners}
    handles = [
        model.get_submodule(owner).register_forward_pre_hook(
            lambda module, args, o=owner: seen[o].append(args)
        )
        for owner in owners
    ]
    with torch.no_grad():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen


def check(found: Statistics, inputs: Tensor) -> None:
    x = inputs.reshape(-1, inputs.shape[-1]).double()
    assert found.tokens == len(x)
    if not len(x):
        return
    expected = {
        "gram": x.T @ x / len(x),
        "diagonal": x.square().mean(0),
        "mean": x.mean(0),
        "mean_abs": x.abs().mean(0),
        "max_abs": x.abs().amax(0),
    }
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(getattr(found, name).double(), value, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3", "falcon", "mixtral", "gpt_oss"])
def test_linear_inputs(family: str, whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model(family)
    found = observe_all(skeleton, tokens)
    views = [view for view in skeleton.views if view.kind != "expert"]
    inputs = recorded(skeleton.model, {view.parameter.removesuffix(".weight") for view in views}, tokens)
    assert set(found) == {view.name for view in skeleton.views}
    for view in views:
        ((value, *_),) = inputs[view.parameter.removesuffix(".weight")]
        check(found[view.name], value)


def expert_inputs(experts: nn.Module, hidden: Tensor, chosen: Tensor) -> dict[tuple[str, int], Tensor]:
    """What each expert's first and second product are given, from the routing alone."""
    result = {}
    for expert in range(experts.gate_up_proj.shape[0]):
        x = hidden[(chosen == expert).any(-1)]
        weight = experts.gate_up_proj[expert]
        if experts.is_transposed:
            gate_up = x @ weight + experts.gate_up_proj_bias[expert]
            gate = gate_up[:, ::2].clamp(max=experts.limit)
            up = gate_up[:, 1::2].clamp(-experts.limit, experts.limit)
            between = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        else:
            gate, up = (x @ weight.T).chunk(2, dim=-1)
            between = nn.functional.silu(gate) * up
        result["gate_up_proj", expert], result["down_proj", expert] = x, between
    return result


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_expert_inputs_are_those_of_the_routed_tokens(
    family: str, whole_model: Build, tokens: Tensor
) -> None:
    skeleton = whole_model(family)
    found = observe_all(skeleton, tokens)
    views = [view for view in skeleton.views if view.kind == "expert"]
    owners = {view.parameter.rpartition(".")[0] for view in views}
    inputs = recorded(skeleton.model, owners, tokens)
    with torch.no_grad():
        expected = {
            owner: expert_inputs(skeleton.model.get_submodule(owner), *inputs[owner][0][:2])
            for owner in owners
        }
    assert len(views) == 3 * 2 * (8 if family == "qwen3_moe" else 4)
    for view in views:
        owner, _, parameter = view.parameter.rpartition(".")
        check(found[view.name], expected[owner][parameter, view.expert])


def test_an_expert_without_tokens_is_told(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("gpt_oss")
    for index in range(3):
        with torch.no_grad():
            skeleton.block_module(index).mlp.router.bias[3] = -1e4
    found = observe_all(skeleton, tokens)
    unreached = [found[view.name] for view in skeleton.views if view.expert == 3]
    assert len(unreached) == 6
    assert all(statistics.tokens == 0 and not statistics.gram.any() for statistics in unreached)
    assert all(found[view.name].tokens > 0 for view in skeleton.views if view.expert == 0)


def test_experts_that_cannot_be_watched_are_told(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("mixtral")
    # Products with a copy of the parameter instead of a slice of it.
    skeleton.block_module(0).mlp.experts.forward = lambda hidden, *routing: hidden.clone()
    with pytest.raises(UserError, match="could be recorded"):
        observe_all(skeleton, tokens)


def test_the_experts_setting_is_put_back(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("mixtral")
    before = skeleton.model.config._experts_implementation
    assert before != "eager"
    observe_all(skeleton, tokens)
    assert skeleton.model.config._experts_implementation == before


def test_weights_with_the_same_input_share_statistics(whole_model: Build, tokens: Tensor) -> None:
    found = observe_all(whole_model("llama"), tokens)
    layer = "model.layers.1."
    assert found[layer + "self_attn.q_proj"] is found[layer + "self_attn.k_proj"]
    assert found[layer + "self_attn.q_proj"] is found[layer + "self_attn.v_proj"]
    assert found[layer + "mlp.gate_proj"] is found[layer + "mlp.up_proj"]
    distinct = {id(statistics) for name, statistics in found.items() if name.startswith(layer)}
    assert len(distinct) == 4


def test_only_what_is_asked_for_is_gathered_and_run(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    needs = {view.name: frozenset({"diagonal"}) for view in skeleton.views}
    asked = {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"}
    runs: list[int] = []
    skeleton.block_module(0).mlp.register_forward_hook(lambda *args: runs.append(1))
    with BlockStream(skeleton, tokens, dtype=torch.float32, batch_size=2) as stream:
        stream.prepare()
        found = stream.observe(0, needs, only=asked)
        assert stream.observe(0, {}) == {}
    assert set(found) == asked
    statistics = found["model.layers.0.self_attn.q_proj"]
    assert statistics.gram is None
    assert statistics.diagonal is not None
    assert statistics.tokens == tokens.numel()
    assert len(runs) == 1  # only the first batch runs to the end, to learn which input comes last


def test_cross_moment_pairs_dense_and_compressed_inputs(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    block, name = skeleton.block_module(1), "model.layers.1.mlp.down_proj"
    seen: list[Tensor] = []
    handle = block.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with BlockStream(skeleton, tokens, dtype=torch.float32, batch_size=2, dense=True) as stream:
        stream.prepare()
        stream.advance_dense(0)
        with torch.no_grad():
            for parameter in skeleton.block_module(0).parameters():
                parameter.mul_(0.9)
        stream.advance(0)
        compressed, dense = list(stream.run(1)), list(stream.run(1, dense=True))
        assert not torch.equal(compressed[0], dense[0])
        x, x_dense = (torch.cat(part).flatten(0, 1).double() for part in (seen[:4], seen[4:]))
        handle.remove()
        cross = stream.observe(1, {name: frozenset({"cross"})})[name].cross
        original = {path: parameter.clone() for path, parameter in block.named_parameters()}
        with torch.no_grad():
            block.self_attn.q_proj.weight.zero_()
        again = stream.observe(1, {name: frozenset({"cross"})}, dense_parameters=original)[name].cross
    torch.testing.assert_close(cross.double(), x_dense.T @ x / len(x), rtol=1e-3, atol=1e-4)
    assert not torch.equal(again, cross)


@pytest.mark.parametrize(("family", "need"), [("llama", "squared_gradient"), ("mixtral", "cross")])
def test_what_inputs_cannot_tell_is_refused(
    family: str, need: str, whole_model: Build, tokens: Tensor
) -> None:
    skeleton = whole_model(family)
    needs = {view.name: frozenset({need}) for view in skeleton.views}
    with BlockStream(skeleton, tokens, dtype=torch.float32, dense=True) as stream:
        stream.prepare()
        with pytest.raises(ValueError):
            stream.observe(0, needs)


def test_each_weight_counts_tokens_in_its_own_way(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    views = [view for view in skeleton.views if view.block == 0]
    generator = torch.Generator().manual_seed(2)
    weights = {view.name: torch.rand(tokens.shape, generator=generator) for view in views[:-1]}
    needs = {view.name: frozenset({"gram", "cross"}) for view in views}
    with BlockStream(skeleton, tokens, dtype=torch.float32, batch_size=2, dense=True) as stream:
        stream.prepare()
        found = stream.observe(0, needs, token_weights=weights)
    inputs = recorded(skeleton.model, {view.parameter.removesuffix(".weight") for view in views}, tokens)
    for view in views:
        ((given, *_),) = inputs[view.parameter.removesuffix(".weight")]
        x = given.reshape(-1, given.shape[-1]).double()
        counted = x * weights.get(view.name, torch.ones(tokens.shape)).double().flatten().unsqueeze(1)
        for moment in (found[view.name].gram, found[view.name].cross):
            assert moment is not None
            torch.testing.assert_close(moment.double(), x.T @ counted / len(x), rtol=1e-3, atol=1e-4)
