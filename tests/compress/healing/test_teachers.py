"""What the student is trained towards: several teachers, and one whose words are on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.healing.inner import Seen
from compress.healing.rules import check_rules, open_teachers
from compress.healing.teachers import Cached, Live
from compress.models.skeleton import open_skeleton
from compress.recipe.heal import Heal

from .test_loop import models, training


@pytest.fixture
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


WINDOWS = torch.randint(2, 256, (5, 6), generator=torch.Generator().manual_seed(0))


def test_several_teachers_are_averaged(folder: Path) -> None:
    student, teacher = models(folder)
    one, other = (Live([model]).seen(0, WINDOWS).logits for model in (teacher, student.model))
    both = Live([teacher, student.model]).seen(0, WINDOWS, states=True)
    torch.testing.assert_close(both.logits, (one + other) / 2)
    assert not torch.equal(one, other)
    assert len(both.states) > 0


class Counting(Live):
    asked = 0

    def seen(self, place: int, tokens: Tensor, *, states: bool = False) -> Seen:
        Counting.asked += len(tokens)
        return super().seen(place, tokens, states=states)


def test_the_cache_keeps_the_likeliest_words_and_the_mass_of_the_rest(folder: Path, tmp_path: Path) -> None:
    _, teacher = models(folder)
    live = Counting([teacher])
    truth = Live([teacher]).seen(0, WINDOWS).logits.log_softmax(-1)
    words = truth.shape[-1]
    cached = Cached(tmp_path / "cache", 8, words, batch=2)
    cached.fill(live, WINDOWS, torch.device("cpu"))
    found = cached.seen(1, WINDOWS[1:4]).logits  # of two files
    top, index = truth[1:4].topk(8)
    torch.testing.assert_close(found.gather(-1, index), top, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3, 6), atol=2e-3, rtol=0)
    assert len(found.unique(dim=-1)[0, 0].unique()) <= 9
    (tmp_path / "cache" / "000001.safetensors").unlink()
    asked = Counting.asked
    cached.fill(live, WINDOWS, torch.device("cpu"))
    assert Counting.asked == asked + 2  # the windows of the file that was lost


def test_the_cache_of_one_process_has_its_windows_alone(folder: Path, tmp_path: Path) -> None:
    _, teacher = models(folder)
    live = Live([teacher])
    words = live.seen(0, WINDOWS).logits.shape[-1]
    whole, part = (
        Cached(tmp_path / name, 8, words, 2, places) for name, places in (("a", None), ("b", [0, 3, 4]))
    )
    for one in (whole, part):
        one.fill(live, WINDOWS, torch.device("cpu"))
    assert len(list(part.folder.iterdir())) == 2
    assert torch.equal(part.seen(3, WINDOWS[3:]).logits, whole.seen(3, WINDOWS[3:]).logits)


def test_a_training_on_the_whole_cache_is_that_on_the_teacher(folder: Path, tmp_path: Path) -> None:
    one = training(folder, tmp_path / "a")
    words = int(one.student.model.config.vocab_size)
    cached = Cached(tmp_path / "cache", words, words, batch=4)
    cached.fill(Live([one.teacher]), one.windows, torch.device("cpu"))
    other = replace(training(folder, tmp_path / "b"), teaching=cached)
    assert other.keeps_held_out
    other.teacher.to("meta")
    assert other.run().kept_kl == pytest.approx(one.run().kept_kl, rel=2e-2)


def test_a_teacher_of_other_tokens_is_refused(folder: Path, tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(folder))
    assert len(open_teachers(str(folder), skeleton, trust_remote_code=False)) == 1
    skeleton.model.config.vocab_size += 1
    with pytest.raises(UserError, match=r"the teacher .* has \d+ tokens and the model \d+: take one"):
        open_teachers([str(folder)], skeleton, trust_remote_code=False)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"loss": ["kl", "hidden"], "cache": {"k": 8}}, "'hidden' reads the teacher's blocks"),
        (
            {"train": ["scales", {"name": "codes", "statsq": True}]},
            "'codes' with these .* sets what 'scales' trains",
        ),
        (
            {"optimizer": "spsa", "penalties": "flat"},
            "'flat' needs gradients, and optimizer 'spsa' takes none",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(section: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_rules(Heal.model_validate({"train": "norms", **section}))
