"""What blocks are given: captured from the model's own forward, equal tensors kept once, unusual models refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.calibrate.capture import CannotStream, Pool, WrongDtype, base_of, call_block, capture_of
from compress.errors import UserError


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "gemma3", "falcon", "phi"])
def test_arguments_are_those_of_the_model_s_own_forward(
    family: str, whole_model: Callable[[str], Any], tokens: Tensor
) -> None:
    skeleton = whole_model(family)
    given: list[tuple[Tensor, dict[str, Any]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((args[0] if args else kwargs["hidden_states"], kwargs))

    handles = [
        skeleton.block_module(i).register_forward_pre_hook(note, with_kwargs=True)
        for i in range(len(skeleton.blocks))
    ]
    with torch.no_grad():
        base_of(skeleton.model, skeleton.blocks[0])(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), capture_of(skeleton.model, skeleton.blocks, Pool()) as capture:
        captured = capture.run(tokens)
    assert torch.equal(captured.hidden, given[0][0])
    assert len(captured.kwargs) == len(skeleton.blocks)
    hidden = captured.hidden
    for index, kwargs in enumerate(captured.kwargs):
        assert torch.equal(hidden, given[index][0])
        assert "hidden_states" not in kwargs
        with torch.no_grad():
            hidden = call_block(skeleton.block_module(index), hidden, kwargs)


def test_the_model_is_whole_again_afterwards(whole_model: Callable[[str], Any], tokens: Tensor) -> None:
    skeleton = whole_model("llama")
    before = [skeleton.block_module(i) for i in range(3)]
    with pytest.raises(RuntimeError, match="stop"), capture_of(skeleton.model, skeleton.blocks, Pool()):
        assert skeleton.block_module(0) is not before[0]
        raise RuntimeError("stop")
    assert [skeleton.block_module(i) for i in range(3)] == before


class Block(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.form = form

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Any:
        return self.form(self.linear(hidden_states))


class Model(nn.Module):
    """Two blocks around which everything can go wrong."""

    def __init__(
        self,
        form: Callable[[Tensor], Any],
        take: Callable[[Any], Tensor],
        between: Any = None,
        calls: int = 2,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList([Block(form), Block(form)])
        self.take, self.between, self.calls = take, between, calls

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        hidden = self.embed(input_ids)
        for layer in list(self.layers)[: self.calls]:
            hidden = self.take(layer(hidden, mask=torch.ones(2)))
            if self.between is not None:
                hidden = self.between(hidden)
        return (hidden,)


BLOCKS = ["layers.0", "layers.1"]
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("form", "take"),
    [
        (lambda hidden: hidden, lambda output: output),
        (lambda hidden: (hidden,), lambda output: output[0]),
        (lambda hidden: (hidden, None), lambda output: (lambda h, cache: h)(*output)),
        (lambda hidden: (hidden, None, None), lambda output: (lambda h, cache, attention: h)(*output)),
    ],
)
def test_every_form_of_a_block_s_output(form: Any, take: Any) -> None:
    model = Model(form, take)
    with capture_of(model, BLOCKS, Pool()) as capture:
        captured = capture.run(IDS)
        again = capture.run(IDS + 1)
    assert torch.equal(captured.hidden, model.embed(IDS))
    assert torch.equal(again.hidden, model.embed(IDS + 1))
    assert [list(kwargs) for kwargs in captured.kwargs] == [["mask"], ["mask"]]
    assert call_block(model.layers[0], captured.hidden, captured.kwargs[0]).shape == (2, 3, 4)


def _same(hidden: Any) -> Any:
    return hidden


def _shorter(hidden: Any) -> Tensor:
    tensor: Tensor = hidden if isinstance(hidden, Tensor) else hidden[0]
    return tensor[:, :2]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a change between blocks": ({"between": lambda hidden: 2 * hidden}, "changes the hidden states between"),
    "a block that is not called": ({"calls": 1}, "does not run its 2 blocks once each"),
    "another number of tokens": (
        {"between": _shorter},
        "does not run its 2 blocks once each",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_followed_are_refused(case: str) -> None:
    options, words = REFUSED[case]
    with (
        capture_of(Model(_same, _same, **options), BLOCKS, Pool()) as capture,
        pytest.raises(UserError, match=words),
    ):
        capture.run(IDS)


def test_what_is_added_between_blocks_is_found() -> None:
    """Features of images, say: the same whatever the blocks return."""
    with capture_of(Model(_same, _same, between=lambda hidden: hidden + 1), BLOCKS, Pool()) as capture:
        captured = capture.run(IDS)
    first, second = captured.added
    assert first is None
    assert second is not None
    torch.testing.assert_close(second, torch.ones_like(captured.hidden))


def test_a_model_s_own_failure_is_not_hidden() -> None:
    def broken(hidden: Any) -> Any:
        raise ZeroDivisionError("of the model")

    model = Model(_same, _same, between=broken)
    with capture_of(model, BLOCKS, Pool()) as capture, pytest.raises(CannotStream) as caught:
        capture.run(IDS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_a_block_hands_to_the_next_beside_hidden_states_is_noticed() -> None:
    class Handing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(96, 8)
            self.layers = nn.ModuleList([Block(), Block()])

        def forward(self, input_ids: Tensor) -> tuple[Tensor]:
            hidden, found = self.embed(input_ids), None
            for layer in self.layers:
                hidden, found = layer(hidden, found=found)
            return (hidden,)

    class Block(nn.Module):
        def forward(self, hidden: Tensor, found: Any = None) -> tuple[Tensor, Tensor]:
            return hidden, hidden.sum()

    with (
        capture_of(Handing(), ["layers.0", "layers.1"], Pool()) as capture,
        pytest.raises(CannotStream, match="more of the block before it"),
    ):
        capture.run(IDS)


def test_the_module_that_takes_tokens_is_the_innermost(whole_model: Callable[[str], Any]) -> None:
    skeleton = whole_model("llama")
    assert base_of(skeleton.model, skeleton.blocks[0]) is skeleton.model.model
    with pytest.raises(UserError, match="takes token ids"):
        base_of(nn.Sequential(nn.Linear(2, 2)), "0")


def test_equal_tensors_are_kept_once() -> None:
    pool = Pool()
    mask = torch.ones(2, 3)
    first = pool.keep({"mask": mask, "pair": (mask, 1), "name": "x"})
    pool.new_batch()
    second = pool.keep({"mask": torch.ones(2, 3), "pair": [torch.zeros(2, 3)]})
    assert first["mask"] is first["pair"][0] is second["mask"]
    assert first["mask"] is not mask
    assert first["name"] == "x"
    assert torch.equal(second["pair"][0], torch.zeros(2, 3))


def test_equal_rows_take_the_room_of_one() -> None:
    kept = Pool().keep(torch.arange(4.0).expand(1000, 4).clone())
    assert torch.equal(kept, torch.arange(4.0).expand(1000, 4))
    assert kept.untyped_storage().nbytes() == 16
    view = torch.zeros(1000)[:2]
    assert Pool().keep(view).untyped_storage().nbytes() == 8


def test_code_that_does_not_run_in_half_precision_is_told_with_a_way_out() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.eye(4)  # fp32, whatever x is

    x = torch.ones(1, 2, 4)
    assert torch.equal(call_block(Mixed(), x, {}), x)
    with pytest.raises(WrongDtype, match=r"code of Mixed does not run in bf16 .*--dtype fp32"):
        call_block(Mixed(), x.bfloat16(), {})
    with pytest.raises(WrongDtype, match="fp16"):
        call_block(Mixed(), x.half(), {})


def test_other_failures_of_a_block_stay_what_they_are() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        call_block(Broken(), torch.ones(1, 2, 4).bfloat16(), {})
