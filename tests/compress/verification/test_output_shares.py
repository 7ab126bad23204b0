"""A finished checkpoint compared by two ranks: each its blocks, and the first alone where the other cannot or finds a fault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from compress import compress
from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.prune.block_removal import without_blocks
from compress.system.orders import Place
from compress.system.ranks import Ranks
from compress.verification import output_shares, outputs
from compress.verification.output_shares import CheckBlocks, check_with

Tiny = Callable[..., Path]
TwoRanks = Callable[..., AbstractContextManager[Ranks]]


@pytest.fixture(params=["llama", "mixtral"])
def written(tmp_path: Path, tiny_model: Tiny, request: pytest.FixtureRequest) -> tuple[Path, Source]:
    settings = {"quantize.group_size": 32}
    compress(tiny_model(request.param), "w4-rtn", tmp_path / "out", settings=settings, device="cpu")
    return tmp_path / "out", open_source(tiny_model(request.param))


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the first rank orders."""
    found: list[Any] = []
    send = Ranks.send
    monkeypatch.setattr(
        Ranks, "send", lambda self, to, thing: (found.append(thing), send(self, to, thing))[1]
    )
    return found


def _compared(monkeypatch: pytest.MonkeyPatch) -> list[range | None]:
    """The blocks that this process compares from here on."""
    found: list[range | None] = []
    difference = outputs.difference

    def noted(folder: Path, source: Source, dtype: Any, blocks: range | None = None) -> str | None:
        found.append(blocks)
        return difference(folder, source, dtype, blocks)

    monkeypatch.setattr(outputs, "difference", noted)
    return found


def test_each_rank_compares_its_blocks(
    written: tuple[Path, Source], orders: list[Any], monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    with two_ranks() as ranks:
        compared = _compared(monkeypatch)
        check_with(ranks, *written)
    assert compared == [range(1)]
    assert [order.blocks for order in orders if isinstance(order, CheckBlocks)] == [range(1, 2)]


@pytest.mark.parametrize("block", [0, 1])
def test_a_block_that_computes_something_else_is_named_wherever_it_is(
    block: int, written: tuple[Path, Source], monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    real = outputs.decoder

    def other(*args: Any) -> Any:
        decode = real(*args)
        wrong = f"model.layers.{block}."
        return lambda name: decode(name) * 1.5 if name.startswith(wrong) else decode(name)

    monkeypatch.setattr(outputs, "decoder", other)
    monkeypatch.setattr(outputs.Distances, "check", lambda *_: None)
    with (
        two_ranks() as ranks,
        pytest.raises(UserError, match=rf"model\.layers\.{block} .* computes something"),
    ):
        check_with(ranks, *written)


def test_a_rank_without_the_folder_leaves_all_to_the_first(
    written: tuple[Path, Source], monkeypatch: pytest.MonkeyPatch, two_ranks: TwoRanks
) -> None:
    carry_out = CheckBlocks.carry_out

    def elsewhere(self: CheckBlocks, place: Place) -> bool:
        object.__setattr__(self, "folder", self.folder / "missing")
        return carry_out(self, place)

    monkeypatch.setattr(CheckBlocks, "carry_out", elsewhere)
    with two_ranks() as ranks:
        compared = _compared(monkeypatch)
        check_with(ranks, *written)
    assert compared == [range(1), None]


def test_a_folder_of_other_contents_is_not_compared(
    written: tuple[Path, Source], orders: list[Any], two_ranks: TwoRanks
) -> None:
    folder, source = written
    with two_ranks() as ranks:
        check_with(ranks, folder, source)
    order = next(order for order in orders if isinstance(order, CheckBlocks))
    assert order.carry_out(Place(output_shares.torch.device("cpu")))
    (folder / "compress.json").write_text((folder / "compress.json").read_text() + "\n")
    assert not order.carry_out(Place(output_shares.torch.device("cpu")))


def test_a_rank_that_dies_is_a_sentence(written: tuple[Path, Source], two_ranks: TwoRanks) -> None:
    with two_ranks(dies=True) as ranks, pytest.raises(UserError, match="rank 1 of 2 ended before its work"):
        check_with(ranks, *written)


def test_a_source_that_was_edited_is_compared_here(tiny_model: Tiny) -> None:
    source = open_source(tiny_model("llama"))
    assert output_shares._opens_elsewhere(source)
    assert not output_shares._opens_elsewhere(without_blocks(open_skeleton(source), [0]))
