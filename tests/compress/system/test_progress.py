"""The silent listener takes every call that a job makes."""

from __future__ import annotations

import inspect

from compress.system.progress import Progress, Silent


def test_the_silent_listener_hears_everything() -> None:
    calls = {
        name: call
        for name, call in vars(Progress).items()
        if inspect.isfunction(call) and not name.startswith("_")
    }
    assert set(calls) == {"start", "block", "weight", "step", "train", "note", "finish"}
    for name, call in calls.items():
        assert inspect.signature(getattr(Silent, name)) == inspect.signature(call)
        arguments = {p: 1 for p in inspect.signature(call).parameters if p != "self"}
        assert getattr(Silent(), name)(**arguments) is None
