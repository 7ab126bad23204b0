"""Narrow grids aim in part at what the student predicts on the next wider one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.errors import UserError
from compress.healing.guided import Guided
from compress.healing.inner import forward
from compress.healing.stage import Healed
from compress.healing.student import open_student
from compress.healing.teachers import Live
from compress.planning.methods import build
from compress.recipe.section import Method
from compress.runtime.load import load
from compress.verification.checkpoint import plan_recorded

TOKENS = torch.arange(2, 34).view(2, 16)
ELASTIC = {"name": "codes", "elastic": [3, 2]}


def test_the_target_of_a_narrow_grid_is_the_mean_of_the_dense_model_and_the_next_wider_grid(
    compressed: Callable[..., tuple[Path, Path]],
) -> None:
    folder, source = compressed("w4")
    _, plan = plan_recorded(folder, source, changes={"heal": {"train": [ELASTIC]}})
    teacher = load(source, dtype=torch.float32, device="cpu")
    codes = build("trainable", Method(name="codes", options={"elastic": (3, 2), "guide": 0.25}))
    place = {"device": torch.device("cpu"), "dtype": torch.float32, "trust_remote_code": False}
    student = open_student(folder, plan, [codes], {}, teacher=teacher, **place)
    guided = Guided(Live([teacher]), student, 0.25)
    logits = {}
    with torch.no_grad():
        dense = forward(teacher, TOKENS).logits
        for noise, bits in enumerate((4, 3, 2)):
            student.at(0.5, noise=noise)
            logits[bits] = forward(student.model, TOKENS).logits
            found = guided.seen(0, TOKENS).logits
            if bits == 4:
                assert torch.equal(found, dense)
            else:
                wanted = 0.75 * dense.softmax(-1) + 0.25 * logits[bits + 1].softmax(-1)
                torch.testing.assert_close(found.softmax(-1), wanted)
            assert torch.equal(forward(student.model, TOKENS).logits, logits[bits])
        student.at(0.5)
        assert torch.equal(guided.seen(0, TOKENS).logits, dense)
    assert not torch.equal(logits[3], logits[2])


def test_a_guided_training_is_another_one(healed: Callable[..., Healed]) -> None:
    curves = []
    for options in ({}, {"guide": 0.5}):
        result: Any = healed("w4", [{**ELASTIC, **options}], penalties=[{"name": "distribution"}])
        curves.append([point.kl for point in result.report.healing.points])
        assert result.report.healing.end_kl <= result.report.healing.start_kl
    assert curves[0][0] == curves[1][0]
    assert curves[0][-1] != curves[1][-1]


def test_a_guide_without_grids_to_guide_is_refused() -> None:
    with pytest.raises(UserError, match="guide is a share"):
        build("trainable", Method(name="codes", options={"guide": 0.5}))
