"""Recording: called as it is, recorded, replayed; what a GPU refuses to record runs as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from compress.healing.recorded import Recorded


class Graph:
    """What a CUDA graph does, on the CPU: a recorded call changes nothing, and a replay does it with what is held then."""

    recording: ClassVar[list[Graph]] = []

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def replay(self) -> None:
        for one in self.work:
            one()


@contextmanager
def recording(graph: Graph, pool: Any) -> Iterator[None]:
    Graph.recording.append(graph)
    yield
    Graph.recording.pop()


def do(work: Callable[[], None]) -> None:
    """Do it now, or put it into the graph that is being recorded."""
    if Graph.recording:
        Graph.recording[-1].work.append(work)
    else:
        work()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)


def adding(calls: list[int]) -> tuple[Tensor, Callable[[Tensor], None]]:
    total = torch.zeros(2)

    def add(x: Tensor) -> None:
        calls.append(1)
        do(lambda: total.add_(x))

    return total, add


@pytest.mark.usefixtures("graphs")
def test_every_call_does_the_work_once_and_python_runs_twice() -> None:
    calls: list[int] = []
    total, add = adding(calls)
    run = Recorded(add, None)
    for value in (1.0, 2.0, 4.0, 8.0):
        run(torch.full((2,), value))
    assert total.tolist() == [15.0, 15.0]
    assert len(calls) == 2


@pytest.mark.usefixtures("graphs")
def test_other_shapes_are_recorded_apart() -> None:
    calls: list[int] = []
    total, add = adding(calls)
    run = Recorded(add, None)
    for shape in ((2,), (1,), (2,), (1,), (2,), (1,)):
        run(torch.ones(shape))
    assert total.tolist() == [6.0, 6.0]
    assert len(calls) == 4


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refusing(graph: Any, pool: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", refusing)
    run = Recorded(lambda x: x * 2, None)
    results = [float(run(torch.tensor(value))) for value in (1.0, 2.0, 3.0)]
    assert results == [2.0, 4.0, 6.0]
    assert run.refused == "operation not permitted when stream is capturing"
