"""What healing did, as a part of the report: trained numbers, measurements, distances of the healed weights, a forecast."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import torch

from compress.checkpoint.writer import Written
from compress.healing.data import HealingText
from compress.healing.forecast import forecast
from compress.healing.rules import Rules
from compress.healing.state import State
from compress.healing.student import Student
from compress.models.skeleton import Skeleton
from compress.models.source_weights import SourceWeights, distance
from compress.planning.plan import Plan
from compress.report.schema import Healing, HealingPoint, Report, Shard, WeightFigures


def healed_report(
    before: Report,
    plan: Plan,
    skeleton: Skeleton,
    student: Student,
    state: State,
    text: HealingText,
    rules: Rules,
    written: Written,
    *,
    seconds: float,
) -> Report:
    """The report of a healed checkpoint: that of the checkpoint before, with what has changed.

    Args:
        before: report of the compressed checkpoint.
        plan: of the healed one.
        skeleton: of the source.
        student: with what was kept.
        state: the end of the training.
        text: the windows.
        rules: of the training.
        written: what the output holds.
        seconds: of the training.
    """
    assert plan.recipe.heal is not None
    healing = _healing(student, state, text, rules, plan.recipe.heal.dressing, seconds)
    changes = {
        "recipe": plan.recipe.public(),
        "plan": plan.to_json(),
        "tensors": dict(written.tensors),
        "shards": tuple(
            Shard(file=name, sha256=digest, bytes=size) for name, (size, digest) in written.shards.items()
        ),
        "weights": _weights(before, plan, skeleton, student),
        "healing": healing,
        "notes": (*before.notes, *text.notes),
    }
    return before.model_copy(update=changes)


def _healing(
    student: Student, state: State, text: HealingText, rules: Rules, dressing: int, seconds: float
) -> Healing:
    trained: Counter[str] = Counter()
    for one in student.trained.values():
        trained[one.kind] += one.master.numel()
    length = text.windows.shape[1]
    return Healing(
        trained=dict(trained),
        data=text.name,
        tokens=rules.begin(state.step) * length,
        rate=state.rate,
        steps=state.step,
        planned_steps=dressing + rules.steps,
        held_out=text.held_out.shape[0],
        length=length,
        start_kl=state.points[0].kl,
        end_kl=state.kept_kl,
        best_step=state.best_point.step,
        ended=state.ended,
        points=tuple(HealingPoint(**asdict(point)) for point in state.points),
        twice=forecast([(point.tokens, point.kl) for point in state.points]),
        seconds=seconds,
    )


def _weights(before: Report, plan: Plan, skeleton: Skeleton, student: Student) -> tuple[WeightFigures, ...]:
    """The figures of all weights, with the distances of the healed ones from the source measured anew."""
    source = SourceWeights(skeleton)
    planned = {one.name: one for one in plan.weights}
    figures = []
    for weight in before.weights:
        healed = student.weights.get(weight.name)
        original = None if healed is None else source.read(planned[weight.name].view)
        if healed is not None and original is not None:
            with torch.no_grad():
                stored = healed.layout.decode(healed.tensors(), healed.shape, torch.float32)
                stored = planned[weight.name].in_rounded_basis(stored)
            weight = weight.model_copy(update={"distance": distance(stored.cpu(), original)})
        figures.append(weight)
    return tuple(figures)
