"""The state of a training: what was saved comes back, of this training alone, whatever a crash left beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compress.errors import UserError
from compress.healing.state import Point, State


def state() -> State:
    masters = {"a.weight": torch.arange(3.0), "b:c": torch.ones(2, 2)}
    return State(
        7,
        masters,
        {name: {"mean": value + 1, "square": value + 2} for name, value in masters.items()},
        {name: value + 3 for name, value in masters.items()},
        {name: value + 4 for name, value in masters.items()},
        [Point(0, 0, None, 0.5), Point(5, 500, 0.1 + 0.2, 0.25, 1.5), Point(7, 700, 0.1, 0.25)],
        [1.25, 2.5, 2.0],
        rate=0.003,
    )


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    saved = state()
    saved.save(tmp_path / "state", "key")
    found = State.load(tmp_path / "state", "key", torch.device("cpu"))
    assert found is not None
    assert (found.step, found.points, found.running, found.ended) == (7, saved.points, saved.running, "")
    assert found.rate == 0.003
    for ours, theirs in (
        (found.masters, saved.masters),
        (found.best, saved.best),
        (found.start, saved.start),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(
        torch.equal(found.moments[name][key], value)
        for name, m in saved.moments.items()
        for key, value in m.items()
    )


def test_a_state_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        state().save(tmp_path / "nowhere" / "state", "key")


def test_the_first_of_the_least_is_the_best() -> None:
    assert state().best_point.step == 5


def test_another_training_a_torn_file_and_none_begin_anew(tmp_path: Path) -> None:
    path, device = tmp_path / "state", torch.device("cpu")
    assert State.load(path, "key", device) is None
    state().save(path, "key")
    assert State.load(path, "other", device) is None
    path.write_bytes(path.read_bytes()[:200])
    assert State.load(path, "key", device) is None
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


def test_a_state_without_a_rate_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.dumps
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda facts: whole({k: v for k, v in facts.items() if k != "rate"}))
        state().save(tmp_path / "state", "key")
    assert State.load(tmp_path / "state", "key", torch.device("cpu")) is None
