"""The loop: gradients over micro-batches and with checkpointing are the same, and a loss that is no number ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compress.healing import judging, loop
from compress.healing.loop import Training
from compress.healing.modules import keep_block_inputs_alone, train_parameter
from compress.healing.objective import Objective
from compress.healing.rules import Rules
from compress.healing.shelf import Shelf
from compress.healing.steps import GradientSteps
from compress.healing.student import Student
from compress.healing.trained import trained_tensor
from compress.planning.methods import build
from compress.recipe.section import Method
from compress.recipe.trials import LADDER
from compress.system.progress import Silent


def entry(kind: str, name: str) -> Any:
    return build(kind, Method(name=name))


RULES = Rules(
    Objective([entry("loss", "kl")]),
    entry("optimizer", "adamw"),
    entry("schedule", "linear"),
    entry("end", "best"),
    (),
    steps=4,
    batch=4,
    rate=0.05,
    evaluations=4,
    patience=10,
)


def models(folder: Path) -> tuple[Student, nn.Module]:
    """A model with altered MLPs in training against itself."""
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    parameters = {}
    for name, parameter in list(student.named_parameters()):
        if "mlp" in name or "norm" in name:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            start = parameter + 0.3 * parameter.std().nan_to_num(0) * noise
            parameters[name] = trained_tensor(name, "values", start)
            train_parameter(student, parameters[name])
    return Student(student, {}, parameters), teacher


def training(folder: Path, path: Path, rules: Rules = RULES) -> Training:
    student, teacher = models(folder)
    tokens = torch.randint(2, 256, (20, 16), generator=torch.Generator().manual_seed(1))
    return Training(student, teacher, tokens[:16], tokens[16:], rules, "key", path, Silent())


@pytest.fixture
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


def gradients(one: Training) -> dict[str, Tensor]:
    one._steps(one._fresh()).gradients(one.windows[:4])
    return {
        name: t.master.grad.clone() for name, t in one.student.trained.items() if t.master.grad is not None
    }


def test_training_lowers_the_held_out_kl(folder: Path, tmp_path: Path) -> None:
    state = training(folder, tmp_path / "state").run()
    kls = [point.kl for point in state.points]
    assert state.kept_kl == min(kls) < kls[0]
    assert [point.step for point in state.points] == [0, 1, 2, 3, 4]
    assert state.points[-1].tokens == 4 * 4 * 16
    assert all(point.gradient_norm is not None and point.gradient_norm > 0 for point in state.points[1:])


def test_the_gradient_does_not_depend_on_how_many_windows_run_together(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = gradients(training(folder, tmp_path / "a"))
    monkeypatch.setattr(loop, "logit_bytes", lambda device: 1)
    apart = gradients(training(folder, tmp_path / "b"))
    assert together.keys() == apart.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], rtol=1e-4, atol=1e-7)


def test_checkpointing_of_blocks_gives_the_same_gradient(folder: Path, tmp_path: Path) -> None:
    plain, kept = training(folder, tmp_path / "a"), training(folder, tmp_path / "b")
    keep_block_inputs_alone(kept.student.model)
    ours, theirs = gradients(plain), gradients(kept)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-7)


def test_the_held_out_kl_does_not_depend_on_whether_the_teacher_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = training(folder, tmp_path / "a").judge()
    monkeypatch.setattr(judging, "KEPT_BYTES", 0)
    assert training(folder, tmp_path / "b").judge() == kept


def test_a_loss_that_is_no_number_ends_the_training_and_the_best_stays(folder: Path, tmp_path: Path) -> None:
    one = training(folder, tmp_path / "state", replace(RULES, objective=_breaking_at(3)))
    state = one.run()
    assert state.ended == "the loss was no number at step 3"
    assert state.step == 2
    assert state.kept_kl == min(point.kl for point in state.points)
    assert one.judge() == pytest.approx(state.kept_kl)


def _breaking_at(batch: int) -> Objective:
    calls = []

    class Breaking(Objective):
        def gradient(self, student: Tensor, teacher: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(1)
            value, gradient = super().gradient(student, teacher, tokens)
            return (value * float("nan") if len(calls) == batch else value), gradient

    return Breaking([entry("loss", "kl")])


def test_forward_passes_alone_lower_the_held_out_kl(folder: Path, tmp_path: Path) -> None:
    rules = replace(RULES, optimizer=entry("optimizer", "spsa"), rate=0.002, steps=16, batch=1, evaluations=8)
    one = training(folder, tmp_path / "state", rules)
    state = one.run()
    assert state.kept_kl < state.points[0].kl
    assert all(trained.master.grad is None for trained in one.student.trained.values())
    again = training(folder, tmp_path / "state", rules).run()
    assert again.points == state.points


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8", "spsa"])
def test_a_training_off_memory_goes_the_same_way_also_when_it_is_continued(
    folder: Path, tmp_path: Path, optimizer: str
) -> None:
    rules = replace(RULES, optimizer=entry("optimizer", optimizer), evaluations=2)
    plain = training(folder, tmp_path / "plain", rules)
    wanted = plain.run()
    off = replace(training(folder, tmp_path / "off", rules), shelf=Shelf(tmp_path / "shelf"))
    off.student.put_starts(off.shelf.place)
    state = off._begin()
    assert not any(one.start.requires_grad for one in off.student.trained.values())
    steps = off._steps(state)
    for _ in range(3):
        off._step(state, steps)
    state.save(off.path, off.key)
    again = replace(training(folder, tmp_path / "off", rules), shelf=Shelf(tmp_path / "shelf"))
    found = again.run()
    assert found.points[-1].kl == wanted.points[-1].kl
    for name, value in plain.student.values().items():
        assert torch.equal(value, again.student.values()[name])


def test_a_growing_batch_trains_on_every_window(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = entry("schedule", "growing")
    sizes = schedule.sizes(1, 16)
    rules = replace(RULES, schedule=schedule, steps=len(sizes), batch=1, sizes=sizes, rate=0.005)
    one = training(folder, tmp_path / "state", rules)
    seen: list[int] = []
    gradients = GradientSteps.gradients

    def watched(steps: GradientSteps, windows: Tensor, place: int = 0) -> float:
        assert torch.equal(windows, one.windows[place : place + len(windows)])
        seen.append(len(windows))
        return gradients(steps, windows, place)

    monkeypatch.setattr(GradientSteps, "gradients", watched)
    state = one.run()
    assert tuple(seen) == sizes
    assert len(sizes) < 16
    assert state.points[-1].tokens == 16 * 16
    assert state.kept_kl < state.points[0].kl


def test_measurements_are_spread_evenly() -> None:
    for steps, evaluations in ((10, 3), (3, 10), (7, 7), (1, 5)):
        rules = replace(RULES, steps=steps, evaluations=evaluations)
        measured = [step for step in range(1, steps + 1) if rules.measured(step)]
        assert len(measured) == min(steps, evaluations)
        assert measured[-1] == steps


def test_a_chosen_rate_trains_as_the_same_rate_given(folder: Path, tmp_path: Path) -> None:
    rules = replace(RULES, steps=8, batch=2, rate=None)
    chosen = training(folder, tmp_path / "chosen", rules)
    found = chosen.run()
    assert found.rate in LADDER
    given = training(folder, tmp_path / "given", replace(rules, rate=found.rate))
    assert [point.kl for point in given.run().points] == [point.kl for point in found.points]
    for name, value in given.student.values().items():
        assert torch.equal(value, chosen.student.values()[name])


def test_a_training_that_goes_on_keeps_its_rate(folder: Path, tmp_path: Path) -> None:
    rules = replace(RULES, steps=8, batch=2, rate=None)
    first = training(folder, tmp_path / "state", rules)
    state = first._begin()
    first._step(state, first._steps(state))
    state.save(first.path, first.key)
    again = training(folder, tmp_path / "state", replace(rules, rate=0.5))._begin()
    assert (again.step, again.rate) == (1, state.rate)


def test_the_state_is_written_at_measurements_unless_that_takes_long() -> None:
    assert loop._pause(False, 0.0) == loop.SECONDS_BETWEEN_STATES
    assert loop._pause(True, 0.0) == 0
    assert loop._pause(True, 2.0) == pytest.approx(40)
    assert loop._pause(True, 1e3) == loop.SECONDS_BETWEEN_STATES
