"""Gradients by backwards of the whole model are those that go from block to block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.zoo.models import write_model
from compress.calibrate import whole_model
from compress.calibrate.gradients import BlockGradients, backward
from compress.calibrate.whole_gradients import WholeBackward, record_outputs
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton

TOKENS = torch.arange(48).view(4, 12) * 5 % 256


def _of_the_text(flat: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return ids[:, 1:].reshape(-1)


def test_they_are_those_of_the_walk(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    views = {index: skeleton.block_views(index) for index in range(2)}
    expected = {}
    with backward(skeleton, TOKENS, labels="data", rows=2) as blocks:
        for block in blocks:
            expected[block.index] = (
                list(block.by_weight(views[block.index])),
                list(block.by_output(views[block.index])),
            )
    slices = [slice(0, 2), slice(2, 4)]
    whole = WholeBackward(skeleton, TOKENS, slices, _of_the_text, torch.device("cpu"), torch.float32)
    with whole.loaded("a test"):
        for index in (1, 0):
            block = BlockGradients(index, whole)
            assert block.count == 2
            weights, outputs = expected[index]
            for found, wanted in zip(block.by_weight(views[index]), weights, strict=True):
                assert found.keys() == wanted.keys()
                for name in wanted:
                    torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-6)
            for pair, known in zip(block.by_output(views[index]), outputs, strict=True):
                assert pair.keys() == known.keys()
                for name in known:
                    torch.testing.assert_close(pair[name], known[name], rtol=1e-3, atol=1e-6)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def _looped(folder: Path, kind: str = "hrm_text") -> Skeleton:
    write_model(kind, folder)
    return open_skeleton(open_source(folder))


def test_a_model_that_works_between_its_blocks(tmp_path: Path) -> None:
    skeleton = _looped(tmp_path, "cpmant")
    view = skeleton.block_views(0)[0]
    with backward(skeleton, TOKENS[:1], labels="data") as blocks:
        found = {block.index: list(block.by_weight(skeleton.block_views(block.index))) for block in blocks}
    assert sorted(found) == list(range(len(skeleton.blocks)))
    gradient = found[0][0][view.name]

    def loss(change: float) -> float:
        weight = skeleton.parameter_of(view)
        with torch.no_grad():
            weight[3, 5] += change
            logits = skeleton.model(input_ids=TOKENS[:1], use_cache=False).logits[0, :-1].float()
            weight[3, 5] -= change
        summed = torch.nn.functional.cross_entropy(logits, TOKENS[0, 1:], reduction="sum")
        return float(summed) / TOKENS.shape[1] ** 0.5

    whole = WholeBackward(
        skeleton, TOKENS[:1], [slice(0, 1)], _of_the_text, torch.device("cpu"), torch.float32
    )
    with whole.loaded("a test"):
        slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    assert gradient[3, 5] == pytest.approx(slope, rel=0.05, abs=1e-3)


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = _looped(tmp_path)
    monkeypatch.setattr(whole_model, "available_memory", lambda device: 100_000)
    with pytest.raises(UserError, match="run as a whole"), backward(skeleton, TOKENS):
        pass


def test_labels_are_drawn_once(tmp_path: Path) -> None:
    skeleton = _looped(tmp_path)
    view = skeleton.block_views(0)[0]
    generator = torch.Generator().manual_seed(0)

    def draw(generator: torch.Generator, flat: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(flat.softmax(-1), 1, generator=generator).squeeze(1)

    slices = [slice(0, 4)]
    whole = WholeBackward(
        skeleton, TOKENS, slices, partial(draw, generator), torch.device("cpu"), torch.float32
    )
    with whole.loaded("a test"):
        first, second = (next(whole.weight_gradients(0, [view]))[view.name] for _ in range(2))
    assert torch.equal(first, second)


def test_code_that_adds_to_its_embeddings_in_place(tmp_path: Path) -> None:
    skeleton = _looped(tmp_path, "blt")
    with backward(skeleton, TOKENS[:1], labels="data") as blocks:
        block = next(blocks)
        (found,) = block.by_weight(skeleton.block_views(block.index)[:1])
    (gradient,) = found.values()
    assert float(gradient.abs().sum()) > 0


def test_layers_that_return_no_row_of_outputs_for_a_row_of_inputs_are_passed_over() -> None:
    class BlockDiagonal(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # [n, groups, in] to [n, groups, out / groups]
            return torch.einsum("ngi,goi->ngo", x, self.weight.view(x.shape[1], -1, x.shape[2]))

    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        kept[name] = (inputs, gradient)

    x = torch.randn(5, 2, 3)
    for name, module in {"linear": nn.Linear(3, 4), "diagonal": BlockDiagonal(3, 4)}.items():
        module.register_forward_hook(partial(record_outputs, name, keep))
        (3 * module(x)).sum().backward()
    assert set(kept) == {"linear"}
    inputs, gradient = kept["linear"]
    assert torch.equal(inputs, x.flatten(0, 1))
    assert torch.equal(gradient, torch.full((10, 4), 3.0))
