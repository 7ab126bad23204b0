"""Ranks over gloo, in processes that are forked from the test's."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.system.ranks import Ranks, RanksApart, current_ranks, joined

SAME = {"torch": "1"}


@dataclass
class Pair:
    first: Tensor
    second: Any


def _join(rank: int, size: int, port: int, same: dict[str, str], work: Callable[[Ranks], Any]) -> Any:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with joined(same) as ranks:
        assert ranks is not None
        assert current_ranks() is ranks
        return work(ranks)


def beside(
    other: Callable[[Ranks], Any], work: Callable[[Ranks], Any], its: dict[str, str] = SAME
) -> tuple[Any, int]:
    """What ``work`` returns as rank 0 beside a process that does ``other`` as rank 1, and how that one ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.get_context("fork").Process(target=_join, args=(1, 2, port, its, other))
    before = dict(os.environ)
    process.start()
    try:
        found = _join(0, 2, port, SAME, work)
    finally:
        os.environ.clear()
        os.environ |= before
        process.join(60)
    return found, process.exitcode or 0


def test_what_is_sent_comes_back_as_it_was() -> None:
    shared = torch.arange(6, dtype=torch.float32).view(2, 3)
    things = [
        Pair(shared, {"same": shared, "bits": torch.tensor([True, False])}),
        Pair(torch.tensor(2.5, dtype=torch.bfloat16), (torch.zeros(0, 4), "text", None)),
        Pair(shared.t(), torch.zeros(3).to(torch.float8_e4m3fn)),
    ]

    def echo(ranks: Ranks) -> None:
        while (thing := ranks.receive(0)) is not None:
            ranks.send(0, thing)

    def ask(ranks: Ranks) -> list[Pair]:
        found = []
        for thing in things:
            ranks.send(1, thing)
            found.append(ranks.receive(1))
        ranks.send(1, None)
        return found

    found, code = beside(echo, ask)
    assert code == 0
    for one, other in zip(found, things, strict=True):
        assert torch.equal(one.first, other.first)
        assert one.first.dtype == other.first.dtype
    assert found[0].second["same"] is found[0].first
    assert found[0].second["bits"].tolist() == [True, False]
    assert found[1].second[1:] == ("text", None)
    assert found[1].second[0].shape == (0, 4)
    assert found[2].second.dtype == torch.float8_e4m3fn


def test_a_rank_that_dies_is_a_sentence() -> None:
    with pytest.raises(RanksApart, match="rank 1 of 2 ended before its work was done"):
        beside(lambda ranks: os._exit(3), lambda ranks: ranks.receive(1))


def test_ranks_that_differ_are_a_sentence() -> None:
    with pytest.raises(RanksApart, match="rank 1 has torch 2, rank 0 has 1: start all ranks alike"):
        beside(lambda ranks: None, lambda ranks: None, {"torch": "2"})


def test_one_process_has_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with joined(SAME) as ranks:
        assert ranks is None
    assert current_ranks() is None
