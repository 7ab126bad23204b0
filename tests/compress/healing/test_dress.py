"""DReSS: what goes fades out of the whole model, which is cut and healed in the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress import verify
from compress.checkpoint.sliced_source import Cut
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.healing.dress import Fading
from compress.healing.stage import heal
from compress.healing.trained import trained_tensor
from compress.models.skeleton import open_skeleton
from compress.pipeline.steps import compress
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe

from .conftest import SHORT

WIDTH = {"name": "narrow", "width_pruning": {"neurons": 0.5}}
HEAL = {**SHORT, "train": ["norms", "values"], "dress": {"share": 0.5}}


def test_what_goes_is_nothing_at_the_end_and_the_rest_is_left() -> None:
    one = trained_tensor("w", "values", torch.ones(4, 6))
    fading = Fading({"w": (Cut(1, torch.tensor([1, 4])),)})
    for step, left in ((1, 0.75), (2, 0.5), (3, 0.25), (4, 0.0)):
        fading.after_step({"w": one}, step, 4)
        assert torch.allclose(one.master[:, [1, 4]], torch.tensor(left))
    assert bool((one.master[:, [0, 2, 3, 5]] == 1).all())


def test_a_dressed_model_is_healed_in_the_same_bytes(
    tiny_model: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source, out = tiny_model("llama"), tmp_path / "out"
    compress(source, Recipe.parse(WIDTH), out, data=str(text), samples=4, length=32)
    settings = {key: value for key, value in HEAL.items() if key != "train"}
    result = heal(
        out, source=source, data=str(text), train=HEAL["train"], settings=settings, new=tmp_path / "new"
    )
    verify(result.out, source)
    figures = result.report.healing
    assert figures is not None
    assert figures.steps == 4  # the other four trained the whole model
    assert figures.end_kl <= figures.start_kl
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out"]
    assert not list(result.out.glob("dress*"))


@pytest.mark.parametrize(
    "recipe",
    [
        {**WIDTH, "heal": {**HEAL, "train": ["norms"]}},
        {"name": "depth", "depth_pruning": {"blocks": 1}, "heal": HEAL},
    ],
)
def test_dressing_without_widths_to_leave_out_is_refused(
    tiny_model: Callable[..., Path], recipe: dict[str, object]
) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    with pytest.raises(UserError, match="'dress' teaches a model to do without"):
        make_plan(skeleton, Recipe.parse(recipe))
