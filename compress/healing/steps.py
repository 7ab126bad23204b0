"""A step: what changes the student's masters, by gradients or by forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.healing.host import on_host
from compress.healing.inner import Seen
from compress.healing.judging import Parts
from compress.healing.recorded import Recorded
from compress.healing.rules import Rules
from compress.healing.shares import Shares
from compress.healing.student import Student
from compress.healing.teachers import Live, Teaching
from compress.healing.trained import Trained

Moments = Mapping[str, dict[str, Tensor]]
ALL = "all tensors"
"""The name of the state of an optimizer that keeps one for all tensors."""


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of one training.

    Attributes:
        student: what is trained.
        teaching: what it is trained towards.
        rules: how.
        parts: how many windows run together.
        moments: the state of the optimizer, by master.
        shares: the processes that train together.
    """

    student: Student
    teaching: Teaching
    rules: Rules
    parts: Parts
    moments: Moments
    shares: Shares

    def placed(self, windows: Tensor, place: int) -> Iterator[tuple[int, Tensor]]:
        """Parts of this process's windows with the number of their first; that of all windows is ``place``."""
        own = self.shares.own(len(windows))
        place += own.start
        for tokens in self.parts.of(windows[own]):
            yield place, tokens
            place += len(tokens)

    def taught(self, place: int, tokens: Tensor) -> Seen:
        """What the student is to predict at windows of tokens, the first of which is window ``place``."""
        return self.teaching.seen(place, tokens, states=bool(self.rules.inner.losses))


class GradientSteps(Steps):
    """Steps along gradients. On a GPU they are recorded where every step does the same (:attr:`recordable`)."""

    def __call__(self, windows: Tensor, place: int, rate: float, count: int) -> tuple[float, float]:
        """Change the masters along their gradients, if these are numbers.

        Args:
            windows: int64 ``[windows, length]``.
            place: the number of the first of them in the training.
            rate: the learning rate.
            count: the step, from 1.

        Returns:
            The mean loss by token, and the gradient's squared norm in the masters' units.
        """
        flat = next((one for one in self.rules.penalties if hasattr(one, "around")), None)
        if flat is None:
            loss = self.gradients(windows, place)
        else:
            loss = flat.around(self.student.trained, lambda: self.gradients(windows, place))
        found = self._run("square", self._square)
        assert found is not None
        square = float(found)
        if math.isfinite(loss) and math.isfinite(square):
            if self.recordable:
                self._run("update", self._update, self._on_device(rate), self._on_device(count))
            else:
                self._update(rate, count)
                self._let_gradients_go()
        return loss, square

    @torch.enable_grad()
    def gradients(self, windows: Tensor, place: int = 0) -> float:
        """Fill the masters' gradients; the mean loss by token. The arguments are those of a step."""
        if self.recordable:
            self._set_gradients_to_zero()
        else:
            self._let_gradients_go()
        values = []
        for at, tokens in self.placed(windows, place):
            add = partial(self._add_gradients, at=at, count=windows.numel())
            value = self._run("part", add, tokens)
            assert value is not None
            values.append(value.clone())
        self.shares.add_gradients(self._masters)
        loss = self.shares.total(sum(on_host(values))) / windows.numel()
        for penalty in self.rules.penalties:
            value = penalty(self.student.trained)
            if value.requires_grad:
                value.backward()
            loss += float(value.detach())
        return loss

    @cached_property
    def recordable(self) -> bool:
        """Whether all steps do the same on one GPU, so that they can be recorded."""
        return (
            self.parts.device.type == "cuda"
            and isinstance(self.teaching, Live)
            and self.rules.recordable
            and all(weight.recordable for weight in self.student.weights.values())
            and not any(getattr(one, "gradient_checkpointing", False) for one in self.student.model.modules())
            and all(one.device == self.parts.device for own in self.moments.values() for one in own.values())
        )

    @property
    def refused(self) -> str:
        """Why the GPU could not record a step; empty where it did, or was not asked."""
        return next((one.refused for one in self._recorded.values() if one.refused), "")

    @cached_property
    def _recorded(self) -> dict[str, Recorded]:
        return {}

    @cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @property
    def _masters(self) -> list[nn.Parameter]:
        return [one.master for one in self.student.trained.values()]

    def _run(self, name: str, function: Callable[..., Tensor | None], *given: Tensor) -> Tensor | None:
        """Call ``function``; where steps can be recorded that of the first call is, under ``name``."""
        if not self.recordable:
            return function(*given)
        if name not in self._recorded:
            self._recorded[name] = Recorded(function, self._pool)
        return self._recorded[name](*given)

    def _on_device(self, number: float) -> Tensor:
        return torch.tensor(number, dtype=torch.float64, device=self.parts.device)

    def _let_gradients_go(self) -> None:
        for master in self._masters:
            master.grad = None

    def _set_gradients_to_zero(self) -> None:
        """They stay in the same place for all steps, as a recording wants it."""
        for master in self._masters:
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad.zero_()

    def _add_gradients(self, tokens: Tensor, *, at: int, count: int) -> Tensor:
        """Add to the gradients those of a part of the step's ``count`` tokens; the sum of its loss, fp64.

        Args:
            tokens: int64 ``[windows, length]``.
            at: the number of the first window.
            count: the tokens of the step.
        """
        with torch.enable_grad():
            teacher = self.taught(at, tokens)
            student = self.rules.inner.student(self.student.model, tokens)
            value, gradient = self.rules.objective.gradient(student.logits, teacher.logits, tokens)
            inside = self.rules.inner.sum(student, teacher, self.student.trained)
            if inside is None:
                student.logits.backward(gradient / count)
                return value
            torch.autograd.backward([student.logits, inside / count], [gradient / count, None])
            return value + inside.detach()

    @property
    def _gradients(self) -> list[Tensor]:
        """The gradients of all masters, where steps are recorded: all have one."""
        return [master.grad for master in self._masters if master.grad is not None]

    @cached_property
    def _units(self) -> list[Tensor]:
        """The units of all masters, of the masters' shapes."""
        return [one.unit.expand_as(one.master).contiguous() for one in self.student.trained.values()]

    @torch.no_grad()
    def _square(self) -> Tensor:
        """The squared norm of all gradients in the masters' units, fp64."""
        if self.recordable:
            norms = torch._foreach_norm(list(torch._foreach_mul(self._gradients, self._units)))
            return torch.stack(norms).double().square().sum()
        squares = [(gradient * one.unit).double().square().sum() for one, gradient in self._known.values()]
        return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def _update(self, rate: float | Tensor, count: int | Tensor) -> None:
        """Change the masters, and the optimizer's state, along the gradients."""
        if self.recordable and getattr(self.rules.optimizer, "together", False):
            masters = [master.data for master in self._masters]
            states = [self.moments[name] for name in self.student.trained]
            rates = list(torch._foreach_mul(self._units, torch.as_tensor(rate).to(torch.float32)))
            self.rules.optimizer.step_together(masters, self._gradients, states, rates=rates, count=count)
            return
        for name, (one, gradient) in self._known.items():
            moments = self.moments[name]
            here = {key: moment.to(gradient.device) for key, moment in moments.items()}
            self.rules.optimizer.step(one.master.data, gradient, here, rate=rate * one.unit, count=count)
            for key, moment in moments.items():
                if here[key] is not moment:
                    moment.copy_(here[key])

    @property
    def _known(self) -> dict[str, tuple[Trained, Tensor]]:
        """Masters that have a gradient, with it."""
        trained = self.student.trained.items()
        return {name: (one, one.master.grad) for name, one in trained if one.master.grad is not None}


class ForwardSteps(Steps):
    """Steps by forward passes alone, never recorded; ``moments`` is one state for all masters."""

    refused = ""

    def __call__(self, windows: Tensor, place: int, rate: float, count: int) -> tuple[float, float]:
        """Change the masters; the loss and the squared slope. The arguments are those of :class:`GradientSteps`."""

        def loss() -> float:
            # The teacher is asked for every loss: what it said of a step is as large as many a layer.
            values = (
                self._value(tokens, self.taught(at, tokens)) for at, tokens in self.placed(windows, place)
            )
            penalties = (float(penalty(self.student.trained)) for penalty in self.rules.penalties)
            return self.shares.total(sum(values)) / windows.numel() + sum(penalties)

        found, slope = self.rules.optimizer.step_forward(
            self.student.trained, loss, self.moments[ALL], rate=rate, count=count, seed=count - 1
        )
        return found, slope * slope

    def _value(self, tokens: Tensor, teacher: Seen) -> float:
        """The sum of the loss over a batch."""
        student = self.rules.inner.student(self.student.model, tokens)
        value = self.rules.objective.value(student.logits, teacher.logits, tokens)
        inside = self.rules.inner.sum(student, teacher, self.student.trained)
        return value + (0.0 if inside is None else float(inside))
