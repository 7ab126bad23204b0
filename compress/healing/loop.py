"""The training loop: student against teacher, measured on held-out windows, interrupted and continued at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.healing import judging
from compress.healing.judging import Judge, Parts, row_bytes
from compress.healing.rates import WITHOUT_TRIAL, choose_rate
from compress.healing.rules import Rules
from compress.healing.shares import ALONE, Shares
from compress.healing.shelf import IN_MEMORY, Shelf
from compress.healing.state import Point, State
from compress.healing.steps import ALL, ForwardSteps, GradientSteps
from compress.healing.student import Student
from compress.healing.teachers import Cached, Live, Teaching
from compress.planning.healed import logit_bytes
from compress.recipe.trials import trial_steps
from compress.system.progress import Progress
from compress.system.units import in_time

FORWARD_BYTES = 4 << 20
"""An optimizer of forward passes alone runs windows together while their logits stay under this."""
SECONDS_BETWEEN_STATES = 120.0
"""How often the state is written between measurements."""
STATES_COST = 0.05
"""Behind a measurement it is written unless that would take more than this share of the time."""


@dataclass(frozen=True, eq=False)
class Training:
    """One training.

    Attributes:
        student, teacher: the models; the held-out KL is that from the teacher.
        windows: int64 ``[steps × batch, length]``, those of step ``i`` at ``i × batch``.
        held_out: int64 ``[windows, length]``.
        rules: how it goes.
        key: a hash of all that decides the result: a state with another key is not gone on with.
        path: where the state is kept.
        progress: who is told.
        teaching: what the student is trained towards; the teacher if ``None``.
        shelf: where the optimizer's state, the start and the best iterate are.
        shares: the processes that train together, each on windows of its own.
    """

    student: Student
    teacher: nn.Module
    windows: Tensor
    held_out: Tensor
    rules: Rules
    key: str
    path: Path
    progress: Progress
    teaching: Teaching | None = None
    shelf: Shelf = IN_MEMORY
    shares: Shares = ALONE

    def run(self) -> State:
        """Train to the end, from the state on disk if there is one; the student then holds what is kept.

        Raises:
            UserError: the loss is no number any more, at the very start.
        """
        state = self._begin()
        began, first = time.monotonic(), state.step
        saved, cost = began, 0.0
        steps = self._steps(state)
        while not state.ended:
            self._step(state, steps)
            measured = not state.ended and self.rules.measured(state.step)
            if measured:
                self._measure(state)
            if state.step == self.rules.steps and not state.ended:
                state.ended = "all tokens were trained on"
            now = time.monotonic()
            if self.shares.leads and (state.ended or now - saved > _pause(measured, cost)):
                state.save(self.path, self.key)
                saved = time.monotonic()
                cost = saved - now
            self._tell(state, (now - began) / max(1, state.step - first))
        if steps.refused:
            self.progress.note(
                f"steps were run kernel by kernel, as the GPU could not record one: {steps.refused}"
            )
        return self._end(state)

    def _begin(self) -> State:
        found = State.load(self.path, self.key, self._device) if self.shares.leads else None
        state = self.shares.of_first(found)
        if state is not None:
            state = state.to(self._device)
            self.student.restore(state.masters)
            self._shelve(state)
            self.progress.note(f"healing goes on at step {state.step} of {self.rules.steps}")
            return state
        state = self._fresh()
        state.points.append(Point(0, 0, None, self.judge()))
        if not math.isfinite(state.points[0].kl):
            raise UserError(
                "heal: the held-out KL of the checkpoint is no number: it, or its source, computes NaN or infinity on this "
                "text; try --dtype fp32"
            )
        state.rate = self.rules.rate or self._tried_rate(state)
        return state

    def _fresh(self) -> State:
        """The state before the first step."""
        optimizer = self.rules.optimizer
        masters = self._masters()
        start = self._start(masters)
        if self._forward_only:
            moments = {ALL: optimizer.begin_all()}
        else:
            moments = {n: self.shelf.place_all(n, optimizer.begin(one)) for n, one in masters.items()}
        return State(0, masters, moments, start, start)

    def _shelve(self, state: State) -> None:
        """Let what was read from a state file lie where it lies in a training that was not interrupted."""
        state.masters = self._masters()
        state.start = self._start(state.start)
        state.best = self.shelf.place_all("best", state.best)
        if not self._forward_only:
            state.moments = {n: self.shelf.place_all(n, one) for n, one in state.moments.items()}

    def _masters(self) -> dict[str, Tensor]:
        return {name: one.master.detach() for name, one in self.student.trained.items()}

    def _start(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the values, without a second one of those that the student has as its start."""
        known = {name: one.start for name, one in self.student.trained.items()}
        others = {
            name: value
            for name, value in values.items()
            if known[name].device != value.device or not torch.equal(known[name], value)
        }
        return {**known, **self.shelf.copies("start", others)}

    def _tried_rate(self, state: State) -> float:
        """The rate that brings the held-out KL down most in a few steps from the start."""
        steps = trial_steps(self.rules.steps)
        if not steps:
            return WITHOUT_TRIAL

        def trial(rate: float) -> float:
            short = replace(self, rules=replace(self.rules, rate=rate, steps=steps))
            trained = short._fresh()
            trained.rate = rate
            own = short._steps(trained)
            while trained.step < steps and not trained.ended:
                self.progress.train(trained.step, steps, f"a trial of the learning rate {rate:g}")
                short._step(trained, own)
            kl = math.inf if trained.ended else self.judge()
            self.student.restore(state.start)
            return kl

        tried = choose_rate(trial, state.points[0].kl)
        told = ", ".join(f"{one.kl:.4g} with {one.rate:g}" for one in tried)
        self.progress.note(
            f"learning rate {tried[-1].rate:g}: held-out KL {state.points[0].kl:.4g}, after {steps} steps {told}"
        )
        return tried[-1].rate

    def _step(self, state: State, steps: GradientSteps | ForwardSteps) -> None:
        """One of ``steps``; where the loss or a gradient is no number, the training ends and the best iterate stays."""
        rules = self.rules
        self.student.at(state.step / rules.steps, noise=state.step)
        windows = self.windows[rules.begin(state.step) : rules.begin(state.step + 1)]
        rate = state.rate * rules.schedule.factor(state.step, rules.steps)
        loss, square = steps(windows, rules.begin(state.step), rate, state.step + 1)
        self.student.at(state.step / rules.steps)
        if not (math.isfinite(loss) and math.isfinite(square)):
            state.ended = f"the loss was no number at step {state.step + 1}"
            return
        state.step += 1
        for penalty in rules.penalties:
            if hasattr(penalty, "after_step"):
                penalty.after_step(self.student.trained, state.step, rules.steps)
        state.masters = self._masters()
        state.running = [state.running[0] + loss, state.running[1] + square, state.running[2] + 1]

    def _measure(self, state: State) -> None:
        kl = self.judge()
        losses, squares, steps = state.running
        best = state.best_point.kl
        norm = math.sqrt(squares / steps)
        state.points.append(
            Point(state.step, self.rules.begin(state.step) * self._length, losses / steps, kl, norm)
        )
        state.running = [0.0, 0.0, 0.0]
        if not math.isfinite(kl):
            state.ended = f"the held-out KL was no number at step {state.step}"
        elif kl < best:
            state.best = self.shelf.copies("best", self._masters())
        elif state.step - state.best_point.step >= self.rules.patience * self._interval:
            state.ended = f"the held-out KL did not fall any more after step {state.best_point.step}"

    def _end(self, state: State) -> State:
        """Put what is kept into the student."""
        point = state.best_point
        kept, kl = self.rules.end.choose(state.start, state.best, point.kl, self._judge_values)
        self.student.restore(kept)
        state.best = dict(kept)
        state.kept_kl = kl
        return state

    def judge(self) -> float:
        """The held-out KL by token of the student as it is."""
        return self._judge.kl()

    def _judge_values(self, values: Mapping[str, Tensor]) -> float:
        self.student.restore(values)
        return self.judge()

    @property
    def keeps_held_out(self) -> bool:
        """Whether the teacher's logits of the held-out windows are kept, so that it is not asked about them again."""
        return self._judge.keeps

    @cached_property
    def _judge(self) -> Judge:
        frugal = self._forward_only and not isinstance(self.teaching, Cached)
        kept = 0 if frugal else judging.KEPT_BYTES
        return Judge(self.student.model, self.teacher, self.held_out, self._parts, kept, self.shares)

    def _steps(self, state: State) -> GradientSteps | ForwardSteps:
        """What changes the masters of ``state``, which are the student's."""
        made = ForwardSteps if self._forward_only else GradientSteps
        teaching = self.teaching or Live([self.teacher])
        return made(self.student, teaching, self.rules, self._parts, state.moments, self.shares)

    @cached_property
    def _parts(self) -> Parts:
        dtype = next(self.teacher.parameters()).dtype
        most = FORWARD_BYTES if self._forward_only else logit_bytes(self._device)
        return Parts(row_bytes(self.student.model, dtype), most, self._device)

    @property
    def _forward_only(self) -> bool:
        return hasattr(self.rules.optimizer, "step_forward")

    @property
    def _interval(self) -> float:
        return self.rules.steps / min(self.rules.evaluations, self.rules.steps)

    @property
    def _length(self) -> int:
        return self.windows.shape[1]

    @property
    def _device(self) -> torch.device:
        return next(iter(self.student.trained.values())).master.device

    def _tell(self, state: State, seconds_by_step: float) -> None:
        losses, _, steps = state.running
        loss = losses / steps if steps else state.points[-1].loss
        left = in_time(seconds_by_step * (self.rules.steps - state.step))
        self.progress.train(
            state.step,
            self.rules.steps,
            f"loss {loss if loss is not None else math.nan:.4f} · held-out KL {state.points[-1].kl:.4f} "
            f"(start {state.points[0].kl:.4f}) · {left} left",
        )


def _pause(measured: bool, cost: float) -> float:
    """Seconds that pass before the state is written again, which took ``cost`` of them the last time."""
    return min(SECONDS_BETWEEN_STATES, cost / STATES_COST) if measured else SECONDS_BETWEEN_STATES
