"""Gradients block by block against one backward through the whole model, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.calibrate.capture import call_block
from compress.calibrate.gradients import BlockGradients, _drawn, backward
from compress.calibrate.kfac import gradient_statistics
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton

EVERYTHING = frozenset({"squared_gradient", "gradient_rows", "fisher"})


def tokens(count: int = 4) -> Tensor:
    return torch.randint(2, 256, (count, 24), generator=torch.Generator().manual_seed(0))


def gathered(folder: Path, rows: int = 1, spill: Path | None = None) -> dict[str, list[Tensor]]:
    skeleton = open_skeleton(open_source(folder))
    found: dict[str, list[Tensor]] = {}
    with backward(skeleton, tokens(), labels="data", rows=rows, spill_dir=spill) as blocks:
        for block in blocks:
            for gradients in block.by_weight(skeleton.block_views(block.index)):
                for name, gradient in gradients.items():
                    found.setdefault(name, []).append(gradient)
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_as_one_backward(tiny_model: Callable[..., Path], family: str) -> None:
    folder = tiny_model(family)
    found = gathered(folder, rows=2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    skeleton = open_skeleton(open_source(folder))
    for batch, ids in enumerate(tokens().split(2)):
        model.zero_grad()
        logits = model(ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, 256), ids[:, 1:].reshape(-1), reduction="sum"
        )
        (loss / ids.numel() ** 0.5).backward()
        for view in skeleton.views:
            if view.block is not None:
                whole = view.get(model.get_parameter(view.parameter).grad)
                error = (found[view.name][batch] - whole).norm() / whole.norm()
                assert float(error) < 1e-3, view.name


def test_experts_too(tiny_model: Callable[..., Path]) -> None:
    found = gathered(tiny_model("qwen3_moe"))
    experts = [name for name in found if ".experts." in name]
    assert experts
    assert any(float(gradient.norm()) > 0 for name in experts for gradient in found[name])


def test_moments(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("llama")
    every = gathered(folder)
    skeleton = open_skeleton(open_source(folder))
    with backward(skeleton, tokens(), labels="data") as blocks:
        for block in blocks:
            views = [view for view in skeleton.block_views(block.index) if view.name.endswith("k_proj")]
            found = gradient_statistics(block, views, {view.name: EVERYTHING for view in views})
            for name, statistics in found.items():
                stack = torch.stack(every[name]).double()
                squared = stack.square().mean(0)
                torch.testing.assert_close(
                    statistics.squared_gradient.double(), squared, rtol=1e-3, atol=1e-12
                )
                torch.testing.assert_close(
                    statistics.gradient_rows.double(), squared.sum(1), rtol=1e-3, atol=1e-12
                )
                out, columns = stack.shape[1:]
                # The Fisher matrix rearranged: row (i, k), column (j, l) is E[G_ij G_kl].
                rearranged = torch.einsum("bij,bkl->ikjl", stack, stack).reshape(out * out, -1) / len(stack)
                best = torch.linalg.eigvalsh(rearranged @ rearranged.T)[-1].sqrt()
                left, right = statistics.fisher_left.double(), statistics.fisher_right.double()
                product = left.flatten() @ rearranged @ right.flatten() / left.norm() / right.norm()
                assert float(product) > 0.9 * float(best)
                assert float(left.norm() * right.norm()) == pytest.approx(float(product), rel=1e-3)
                assert float(torch.linalg.eigvalsh(left)[0]) > -1e-6 * float(left.norm())


def test_seeded_and_spilled_alike(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_model("llama")
    in_memory, in_files = gathered(folder), gathered(folder, spill=tmp_path)
    assert all(
        torch.equal(a, b) for name in in_memory for a, b in zip(in_memory[name], in_files[name], strict=True)
    )
    skeleton = open_skeleton(open_source(folder))
    drawn = []
    for seed in (3, 3, 4):
        with backward(skeleton, tokens(), seed=seed) as blocks:
            for block in blocks:
                if block.index == 1:
                    drawn.append(next(iter(block.by_weight(skeleton.block_views(1)))))
    name = next(iter(drawn[0]))
    assert torch.equal(drawn[0][name], drawn[1][name])
    assert not torch.equal(drawn[0][name], drawn[2][name])


@pytest.mark.parametrize("how", ["by_weight", "by_output"])
def test_not_finite(tiny_model: Callable[..., Path], how: str) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    with pytest.raises(UserError, match="not finite"), backward(skeleton, tokens()) as blocks:
        for block in blocks:
            parameter = skeleton.parameter_of(skeleton.block_views(block.index)[0])
            parameter.data.fill_(float("nan"))
            list(getattr(block, how)(skeleton.block_views(block.index)))


def test_slopes_make_up_the_gradient(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("phi3")  # whose q, k and v are rows of one parameter
    skeleton = open_skeleton(open_source(folder))
    with backward(skeleton, tokens(), labels="data") as blocks:
        for block in blocks:
            views = skeleton.block_views(block.index)
            whole, parts = list(block.by_weight(views)), list(block.by_output(views))
            for batch, found in zip(whole, parts, strict=True):
                assert set(found) == set(batch)
                for name, (inputs, output_gradients) in found.items():
                    torch.testing.assert_close(output_gradients.T @ inputs, batch[name], rtol=1e-3, atol=1e-7)
            statistics = gradient_statistics(
                block, views, {view.name: frozenset({"output_gradients"}) for view in views}
            )
            for name in statistics:
                output_gradients = torch.cat([found[name][1] for found in parts]) * 24**0.5
                inputs = torch.cat([found[name][0] for found in parts])
                torch.testing.assert_close(
                    statistics[name].output_gradient_gram,
                    output_gradients.T @ output_gradients / len(output_gradients),
                )
                torch.testing.assert_close(statistics[name].dense_gram, inputs.T @ inputs / len(inputs))


def test_an_exception_frees_the_block_and_the_hidden_states(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    blocks: list[BlockGradients] = []
    with (
        pytest.raises(RuntimeError, match="stop") as caught,
        backward(skeleton, tokens()) as iterator,
    ):
        blocks.append(next(iterator))
        raise RuntimeError("stop")
    assert caught.traceback
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    state = blocks[0]._state
    for states in (*state.inputs, state.output_gradients, state.input_gradients):
        assert states is not None
        assert states.data.numel() == 0


def test_gradients_by_a_block_s_input_are_computed_once(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block whose gradients nobody asked for takes one backward for each batch, and so does one asked once."""
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    calls: list[int] = []

    def counted(block: Any, hidden: Tensor, kwargs: Any) -> Tensor:
        calls.append(1)
        return call_block(block, hidden, kwargs)

    monkeypatch.setattr("compress.calibrate.block_backward.call_block", counted)
    with backward(skeleton, tokens(3)) as blocks:
        for block in blocks:
            if block.index == 1:
                list(block.by_weight(skeleton.block_views(1)))
    assert len(calls) == 3
    with backward(skeleton, tokens(3)) as blocks:
        list(blocks)
    assert len(calls) == 6


def test_long_texts_are_sampled_evenly(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    with backward(skeleton, tokens(9), labels="data", at_most=3 * 24) as blocks:
        sampled = list(next(blocks).by_weight(skeleton.block_views(1)))
    with backward(skeleton, tokens(9)[[0, 4, 8]], labels="data") as blocks:
        expected = list(next(blocks).by_weight(skeleton.block_views(1)))
    assert len(sampled) == 3
    for one, other in zip(sampled, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_labels_are_drawn_by_their_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.2, 0.7, 0.0]).repeat(100_000, 1)
    drawn = _drawn(probabilities.clone(), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(shares, probabilities[0], atol=5e-3, rtol=0)
    assert float(shares[1]) == float(shares[4]) == 0
    assert torch.equal(drawn, _drawn(probabilities.clone(), torch.Generator().manual_seed(0)))


def test_the_last_choice_with_a_probability_is_the_last_that_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(*shape))
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert _drawn(probabilities, torch.Generator()).tolist() == [1, 2]
