"""Steps as they are recorded on a GPU change the masters as others do; what differs from step to step is not recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from compress import compress
from compress.healing import stage, steps
from compress.healing.loop import Training
from compress.healing.preparing import prepared, section_of
from compress.healing.steps import GradientSteps
from compress.system.progress import Silent


def opened(
    source: Path, text: Path, folder: Path, recipe: str, train: Any, settings: dict[str, Any] | None = None
) -> Training:
    out = folder / "out"
    grid = {"quantize.group_size": 64} if recipe.startswith("w") else {}
    if not out.exists():
        compress(source, recipe, out, data=str(text), samples=2, length=16, settings=grid, device="cpu")
    asked = {"tokens": 256, "length": 16, "batch": 4, "holdout": 2, "rate": 0.01, "evaluations": 1}
    job = prepared(
        out,
        stage.open_dense(source),
        section_of(str(text), train, asked | (settings or {})),
        seed=0,
        device=torch.device("cpu"),
        dtype="fp32",
        trust_remote_code=False,
        progress=Silent(),
    )
    return stage._opened(job, folder, stage.Shares())[2]


class Called(steps.Recorded):
    """A recording that runs its function every time, and is told of the calls."""

    names: ClassVar[list[str]] = []

    def __call__(self, *given: Tensor) -> Tensor | None:
        Called.names.append(self.function.__name__ if hasattr(self.function, "__name__") else "part")
        return self.function(*(one.clone() for one in given))


class AlikeSteps(GradientSteps):
    """Steps as on a GPU."""

    @cached_property
    def recordable(self) -> bool:
        return True

    @cached_property
    def _pool(self) -> Any:
        return None


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8", "lion"])
@pytest.mark.parametrize(
    ("recipe", "train"), [("w3-gptq", ["codes", "scales", "norms"]), ("sparse24-awp", ["values", "norms"])]
)
def test_recorded_steps_go_where_others_go(
    tiny_model: Callable[..., Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    train: list[str],
    optimizer: str,
) -> None:
    monkeypatch.setattr(steps, "Recorded", Called)
    values = []
    for kind in (GradientSteps, AlikeSteps):
        one = opened(tiny_model("llama"), text, tmp_path, recipe, train, {"optimizer": optimizer})
        state = one._fresh()
        state.rate = 0.01
        own = kind(one.student, *_rest(one, state))
        for _ in range(3):
            one._step(state, own)
        assert state.step == 3
        values.append(one.student.values())
    for name, value in values[0].items():
        torch.testing.assert_close(values[1][name], value, rtol=2e-5, atol=1e-6)
    assert set(Called.names) == {"part", "_square", "_update"}


def _rest(one: Training, state: Any) -> tuple[Any, ...]:
    made = one._steps(state)
    return made.teaching, made.rules, made.parts, made.moments, made.shares


def test_what_differs_from_step_to_step_is_not_recorded(
    tiny_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source = tiny_model("llama")

    def recordable(recipe: str, train: Any, **settings: Any) -> bool:
        one = opened(source, text, tmp_path / recipe, recipe, train, settings)
        made = one._steps(one._fresh())
        assert not made.recordable  # not on a CPU
        on_gpu = replace(made, parts=replace(made.parts, device=torch.device("cuda")))
        for own in on_gpu.moments.values():
            own.clear()  # they would be on the GPU
        return bool(on_gpu.recordable)

    assert recordable("w3-gptq", ["codes", "scales", "norms"])
    assert recordable("w3-gptq", ["bits"])
    assert recordable("sparse24-awp", ["values"])
    assert recordable("sparse70-awp", ["values"])
    assert not recordable("w3-gptq", [{"name": "codes", "elastic": [2]}])
    assert not recordable("w3-gptq", [{"name": "codes", "freeze": 0.2}])
    assert not recordable("w3-gptq", ["scales"], loss="logits")
    assert not recordable("w3-gptq", ["scales"], filter="hard")
    assert not recordable("w3-gptq", ["scales"], penalties=["decay"])
    assert not recordable("w3-gptq", ["scales"], loss=["kl", "hidden"])
    assert not recordable("w3-gptq", ["scales"], schedule="growing")
    assert not recordable("w3-gptq", ["scales"], cache={"k": 4})
    assert not recordable("w3-gptq", ["scales"], checkpointing=True)
