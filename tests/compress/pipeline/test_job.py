"""What is done to a single weight: its listener, its bytes, the vectors that may change, and how it is written."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.pipeline.job import Job, timed_step
from compress.system.monitor import Monitor


@dataclass
class Listener:
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, *args))


def job(listener: Any, **plan: Any) -> Job:
    skeleton: Any = SimpleNamespace(
        blocks=["m.h.1", "m.h.10"], parameter_of=lambda view: PARAMETERS[view.parameter]
    )
    planned: Any = SimpleNamespace(**plan)
    return Job(
        skeleton, planned, torch.device("cpu"), torch.float32, 0, Monitor(), listener, SimpleNamespace()
    )  # type: ignore[arg-type]


PARAMETERS = {"p": torch.zeros(2, 3)}


def weight(dtype: torch.dtype = torch.bfloat16) -> Any:
    def put(parameter: torch.Tensor, dense: torch.Tensor) -> None:
        parameter.copy_(dense)

    view = SimpleNamespace(sources=("disk",), parameter="p", put=put)
    return SimpleNamespace(name="w", numel=6, view=view, in_rounded_basis=lambda weight: weight)


def facts(dtype: torch.dtype) -> Any:
    return SimpleNamespace(headers={"disk": SimpleNamespace(dtype=dtype)})


def test_a_step_is_shown_and_timed() -> None:
    listener, monitor = Listener(), Monitor()
    with timed_step(listener, monitor, "solve"):  # type: ignore[arg-type]
        assert listener.calls == [("step", "solve")]
    assert list(monitor.seconds) == ["solve"]


@pytest.mark.parametrize(("dtype", "nbytes"), [(torch.bfloat16, 12), (torch.float32, 24)])
def test_bytes_are_those_of_the_source(dtype: torch.dtype, nbytes: int) -> None:
    assert job(Listener(), facts=facts(dtype)).dense_bytes(weight()) == nbytes


def test_vectors_of_one_block() -> None:
    rewritten = {"m.h.1.norm": "a", "m.h.10.norm": "b", "m.h.10.bias": "c", "m.norm": "d"}
    found = job(Listener(), rewritten=rewritten)
    assert found.rewritten(0) == {"m.h.1.norm": "a"}
    assert found.rewritten(1) == {"m.h.10.norm": "b", "m.h.10.bias": "c"}
    assert found.rewritten(None) == {}


@pytest.mark.parametrize("fallback", [None, "plain rounding was nearer"])
def test_a_written_weight(fallback: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    PARAMETERS["p"] = torch.zeros(2, 3)
    packed, listener, saved = object(), Listener(), list[Any]()

    def save(planned: Any, given: Any, writer: Any, facts: Any) -> Any:
        saved.append((planned.name, given, writer))
        return SimpleNamespace(dense=lambda dtype: torch.full((2, 3), 7, dtype=dtype))

    monkeypatch.setattr(Job, "step", lambda self, name: nullcontext())
    monkeypatch.setattr(Job, "_distance", lambda self, planned, attempt, dense: float(dense.sum()))
    record = {"fallback": fallback, "error": 0.5}
    values = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, -4000.0]])
    solved: Any = SimpleNamespace(packed=packed, record=record, weight=values)
    found = job(listener, facts=facts(torch.bfloat16), exporter=SimpleNamespace(save=save))
    assert found.write("writer", weight(), solved) == {  # type: ignore[arg-type]
        **record,
        "distance": 42.0,
        "outlier": 4000.0,
    }
    assert saved == [("w", packed, "writer")]
    assert torch.equal(PARAMETERS["p"], torch.full((2, 3), 7.0))
    notes = [] if fallback is None else [("note", f"w: {fallback}")]
    assert listener.calls == [*notes, ("weight", "w", 12)]
