"""The stream against the model run whole: activations, arguments, spilling, what is left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.calibrate.capture import CannotStream, base_of
from compress.calibrate.stream import BlockStream
from compress.errors import UserError

FAMILIES = ["llama", "gpt2", "gpt_neox", "opt", "gemma3", "mixtral", "qwen3_moe", "gpt_oss", "falcon", "phi"]
Build = Callable[[str], Any]


def stream_of(skeleton: Any, tokens: Tensor, **options: Any) -> BlockStream:
    return BlockStream(skeleton, tokens, dtype=torch.float32, **{"batch_size": 2, **options})


def block_outputs(skeleton: Any, tokens: Tensor) -> list[Tensor]:
    """Every block's output in the model run whole."""
    outputs: list[Tensor] = []
    handles = [
        skeleton.block_module(index).register_forward_hook(
            lambda module, args, output: outputs.append(output if isinstance(output, Tensor) else output[0])
        )
        for index in range(len(skeleton.blocks))
    ]
    with torch.no_grad():
        base_of(skeleton.model, skeleton.blocks[0])(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return outputs


def collect(stream: BlockStream, index: int) -> Tensor:
    return torch.cat([hidden for hidden, _ in stream.inputs(index)])


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_of_the_model_run_whole(
    family: str, whole_model: Build, tokens: Tensor
) -> None:
    skeleton = whole_model(family)
    expected = block_outputs(skeleton, tokens)
    with stream_of(skeleton, tokens) as stream:
        stream.prepare()
        for index, output in enumerate(expected):
            torch.testing.assert_close(torch.cat(list(stream.run(index))), output, rtol=1e-4, atol=1e-4)
            stream.advance(index)
            torch.testing.assert_close(collect(stream, index), output, rtol=1e-4, atol=1e-4)


def test_prepare_puts_the_blocks_back_and_frees_the_rest(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    before = [skeleton.block_module(index) for index in range(3)]
    with stream_of(skeleton, tokens) as stream:
        stream.prepare()
    assert [skeleton.block_module(index) for index in range(3)] == before
    assert skeleton.calls == ["load_rest", "release_rest"]


def test_prepare_puts_the_blocks_back_after_an_error(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    before = skeleton.block_module(0)
    with stream_of(skeleton, tokens + 96) as stream, pytest.raises(CannotStream):
        stream.prepare()
    assert skeleton.block_module(0) is before
    assert skeleton.calls == ["load_rest", "release_rest"]


def test_equal_arguments_are_stored_once(whole_model: Build, tokens: Tensor) -> None:
    with stream_of(whole_model("llama"), tokens[:6]) as stream:
        stream.prepare()
        cosines = {
            kwargs["position_embeddings"][0].data_ptr()
            for index in range(3)
            for _, kwargs in stream.inputs(index)
        }
    assert len(cosines) == 1


def test_sliding_and_full_attention_get_their_own_masks(whole_model: Build, tokens: Tensor) -> None:
    with stream_of(whole_model("gemma3"), tokens) as stream:
        stream.prepare()
        masks = [next(stream.inputs(index))[1]["attention_mask"] for index in range(3)]
        cosines = [next(stream.inputs(index))[1]["position_embeddings"][0] for index in range(3)]
    distance = torch.arange(20)[:, None] - torch.arange(20)[None]
    sliding = (distance >= 0) & (distance < 8)
    allowed = masks[0] if masks[0].dtype == torch.bool else masks[0] == 0
    assert torch.equal(allowed[0, 0], sliding)
    assert masks[2] is masks[0]
    assert masks[1] is None or not torch.equal(masks[1], masks[0])
    assert not torch.equal(cosines[1], cosines[0])


def test_a_spilled_stream_gives_the_same(whole_model: Build, tokens: Tensor, tmp_path: Path) -> None:
    skeleton = whole_model("llama")
    needs = {view.name: frozenset({"gram"}) for view in skeleton.views}
    with (
        stream_of(skeleton, tokens) as kept,
        stream_of(skeleton, tokens, memory_limit=0, spill_dir=tmp_path / "spill") as spilled,
    ):
        kept.prepare()
        spilled.prepare()
        assert spilled.spilled
        assert not kept.spilled
        for index in range(3):
            first, second = kept.observe(index, needs), spilled.observe(index, needs)
            assert all(torch.equal(first[name].gram, second[name].gram) for name in first)
            kept.advance(index)
            spilled.advance(index)
        assert torch.equal(collect(kept, 0), collect(spilled, 0))
    assert list((tmp_path / "spill").iterdir()) == []


def test_a_full_disk_is_told_in_a_sentence(
    whole_model: Build, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    stream = stream_of(whole_model("llama"), tokens, memory_limit=0, spill_dir=tmp_path)
    with pytest.raises(UserError, match="No space left"):
        stream.prepare()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_are_identical(whole_model: Build, tokens: Tensor) -> None:
    results = []
    for _ in range(2):
        skeleton = whole_model("mixtral")
        needs = {view.name: frozenset({"gram", "max_abs"}) for view in skeleton.views}
        with stream_of(skeleton, tokens) as stream:
            stream.prepare()
            statistics = stream.observe(0, needs)
            stream.advance(0)
            results.append([collect(stream, 0), *(found.gram for found in statistics.values())])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_advance_uses_the_weights_as_they_are_now(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    with stream_of(skeleton, tokens, dense=True) as stream:
        stream.prepare()
        block = skeleton.block_module(0)
        original = {name: parameter.clone() for name, parameter in block.named_parameters()}
        dense_expected = torch.cat(list(stream.run(0)))
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.mul_(0.5)
        expected = torch.cat(list(stream.run(0)))
        stream.advance(0)
        stream.advance_dense(0, dense_parameters=original)
        assert torch.equal(collect(stream, 1), expected)
        assert torch.equal(torch.cat([hidden for hidden, _ in stream.inputs(1, dense=True)]), dense_expected)


@pytest.mark.parametrize("need", ["cross", "gram"])
@pytest.mark.parametrize("changed", [False, True])
def test_observing_the_last_stage_moves_the_dense_activations_on(
    whole_model: Build, tokens: Tensor, need: str, changed: bool
) -> None:
    """In the forwards that record dense inputs, or in their own: the same activations and the same statistics."""
    skeleton = whole_model("llama")
    needs = {view.name: frozenset({need}) for view in skeleton.views if view.block == 0}
    down = {name for name in needs if "down_proj" in name}
    found = []
    for at_once in (False, True):
        with stream_of(skeleton, tokens, dense=True) as stream:
            stream.prepare()
            dense = {name: p.clone() for name, p in skeleton.block_module(0).named_parameters()}
            if changed:
                dense = {name: 1.5 * p for name, p in dense.items()}
            seen = stream.observe(0, needs, only=down, dense_parameters=dense, advance_dense=at_once)
            if not at_once:
                stream.advance_dense(0, dense)
            statistics = [getattr(one, need) for one in seen.values()]
            found.append([*statistics, *(hidden for hidden, _ in stream.inputs(1, dense=True))])
    assert len(found[0]) > 1
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_block_can_be_trained_on_its_inputs(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    with stream_of(skeleton, tokens) as stream:
        stream.prepare()
        block = skeleton.block_module(0)
        for (hidden, kwargs), target in zip(stream.inputs(0), stream.run(0), strict=True):
            (block(hidden, **kwargs) - 2 * target).square().mean().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


class _Meddling(nn.Module):
    """A decoder that changes the hidden states between its blocks."""

    def __init__(self, factor: float, added: float) -> None:
        super().__init__()
        self.factor, self.added = factor, added
        self.embed = nn.Embedding(96, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = self.factor * layer(hidden) + self.added
        return hidden


def test_a_model_that_works_between_its_blocks_is_refused(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    skeleton.model, skeleton.blocks = _Meddling(2.0, 0.0), ["layers.0", "layers.1"]
    with stream_of(skeleton, tokens) as stream, pytest.raises(UserError, match="between its blocks"):
        stream.prepare()


def test_what_a_model_adds_between_its_blocks_is_added(whole_model: Build, tokens: Tensor) -> None:
    """Features of images, say, which no block has a part in."""
    skeleton = whole_model("llama")
    model = _Meddling(1.0, 3.0)
    skeleton.model, skeleton.blocks = model, ["layers.0", "layers.1"]
    expected = model.layers[1](model.layers[0](model.embed(tokens)) + 3.0)
    with stream_of(skeleton, tokens) as stream:
        stream.prepare()
        stream.advance(0)
        torch.testing.assert_close(torch.cat(list(stream.run(1))), expected)


def test_hidden_states_that_are_no_numbers_are_refused(whole_model: Build, tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    with torch.no_grad():
        skeleton.block_module(1).mlp.down_proj.weight[3, 5] = float("inf")
    with stream_of(skeleton, tokens) as stream:
        stream.prepare()
        stream.advance(0)
        with pytest.raises(UserError, match=r"after model\.layers\.1 are NaN or infinite in float32"):
            stream.advance(1)


def test_calls_out_of_order_are_refused(whole_model: Build, tokens: Tensor) -> None:
    stream = stream_of(whole_model("llama"), tokens)
    with pytest.raises(ValueError, match="prepare"):
        stream.advance(0)
    stream.prepare()
    with pytest.raises(ValueError, match="dense=True"):
        stream.advance_dense(0)
    with pytest.raises(ValueError, match="dense=True"):
        stream.observe(0, {stream._skeleton.views[0].name: frozenset({"cross"})})
    stream.close()
