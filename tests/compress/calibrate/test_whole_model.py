"""Models whose blocks cannot be run one by one: the whole model gives the same answers, or is refused for its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import compress
from benchmarks.zoo.models import write_model
from compress.calibrate import whole_model as module
from compress.calibrate.capture import CannotStream
from compress.calibrate.stream import BlockStream
from compress.calibrate.walk import walk_blocks
from compress.calibrate.whole_model import WholeModelStream
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton

TOKENS = torch.arange(48).view(4, 12) * 5 % 256
FP32 = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    found = open_skeleton(open_source(tiny_model("qwen3_moe")))
    for index in range(2):
        found.load_block(index, **FP32)
    return found


def test_statistics_and_outputs_are_those_of_the_stream(skeleton: Skeleton) -> None:
    needs = {view.name: frozenset({"gram"}) for view in skeleton.views if view.block is not None}
    with BlockStream(skeleton, TOKENS, **FP32) as stream, WholeModelStream(skeleton, TOKENS, **FP32) as whole:
        stream.prepare()
        stream.advance(0)
        expected, outputs = stream.observe(1, needs), list(stream.run(1))
        whole.prepare()
        found = whole.observe(1, needs)
        assert found.keys() == expected.keys()
        for name, statistics in expected.items():
            torch.testing.assert_close(found[name].gram, statistics.gram, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(list(whole.run(1)), outputs, rtol=1e-4, atol=1e-5)


def test_blocks_that_were_changed_before_are_seen_as_they_are(skeleton: Skeleton) -> None:
    with WholeModelStream(skeleton, TOKENS, **FP32) as whole:
        whole.prepare()
        before = next(whole.run(1))
        with torch.no_grad():
            skeleton.block_module(0).self_attn.o_proj.weight.mul_(3)
        whole.advance(0)
        assert not torch.allclose(next(whole.run(1)), before, atol=1e-3)


def test_replay_with_other_weights(skeleton: Skeleton) -> None:
    with WholeModelStream(skeleton, TOKENS, **FP32, dense=True) as whole:
        whole.prepare()
        whole.advance_dense(1)
        name = "self_attn.o_proj.weight"
        weight = skeleton.block_module(1).get_parameter(name).detach().clone().requires_grad_()
        output, dense = whole.replay(1, 0, {name: weight})
        torch.testing.assert_close(output, dense)
        output.square().sum().backward()
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) > 0


@pytest.mark.parametrize("kind", ["hrm_text", "zamba2", "hy_v4", "cpmant"])
def test_what_cannot_be_streamed_is_compressed_and_verified(kind: str, tmp_path: Path) -> None:
    """Blocks called twice, blocks that share weights, blocks that hand on more than hidden states, a prompt before the text."""
    write_model(kind, tmp_path / "source")
    skeleton = open_skeleton(open_source(tmp_path / "source"))
    with BlockStream(skeleton, TOKENS, **FP32) as stream, pytest.raises(CannotStream):
        stream.prepare()
    result = compress.compress(
        tmp_path / "source", "w4-gptq", tmp_path / "out", samples=2, length=16, device="cpu"
    )
    assert result.plan.coverage.is_enough
    unseen = [weight.name for weight in result.report.weights if not weight.tokens]
    assert all("adapter" in name for name in unseen)  # of a shared block, which each place has for itself
    assert not any("true_input_target" in note for note in result.report.notes)


def test_a_true_input_target_that_has_no_effect_is_told(tmp_path: Path) -> None:
    write_model("hrm_text", tmp_path / "source")
    options = {"samples": 2, "length": 16, "device": "cpu"}
    result = compress.compress(tmp_path / "source", "lowrank80-svdllm", tmp_path / "out", **options)
    assert any("as a whole: true_input_target had no effect" in note for note in result.report.notes)


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model("hrm_text", tmp_path)
    skeleton = open_skeleton(open_source(tmp_path))
    monkeypatch.setattr(module, "available_memory", lambda device: 100_000)
    with (
        pytest.raises(UserError, match=r"once each.*run as a whole.*machine with more memory"),
        walk_blocks(skeleton, TOKENS, **FP32),
    ):
        pass
