"""A recipe with ``heal``: the steps, then healing, one command; stopped anywhere it goes on to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress import Recipe, compress, plan, verify
from compress.errors import UserError
from compress.system.progress import Silent

STEP = {"targets": ["linear"], "quantize": {"bits": 2, "group_size": 32}, "solver": "nearest"}
HEAL = {
    "train": ["norms", "scales"],
    "tokens": 512,
    "length": 32,
    "holdout": 2,
    "evaluations": 2,
    "rate": 0.02,
}


def recipe_of(**changes: Any) -> Recipe:
    return Recipe.parse({"name": "test", "steps": [STEP], "heal": {**HEAL, **changes}})


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 60)
    return str(path)


class Stopping(Silent):
    """Stops at the first step of the training."""

    def train(self, done: int, total: int, figures: str) -> None:
        raise KeyboardInterrupt


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_recipe_compresses_and_heals(tiny_model: Callable[..., Path], tmp_path: Path, text: str) -> None:
    source = tiny_model("llama")
    planned = plan(source, recipe_of(), data=text)
    result = compress(source, recipe_of(), tmp_path / "out", data=text)
    assert sum(map(len, files(result.out).values())) == planned.total_bytes
    assert result.plan.shards == planned.shards
    assert planned.healed == {"norms": 5 * 64, "scales": result.report.healing.trained["scales"]}  # type: ignore[union-attr]
    assert "the bytes stay" in planned.heal_note
    bare = plan(source, recipe_of().model_copy(update={"heal": None}))
    assert planned.total_bytes == bare.total_bytes
    assert planned.peak_memory > bare.peak_memory
    verify(result.out, source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]


def test_a_stopped_run_goes_on_and_another_one_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    source = tiny_model("llama")
    whole = compress(source, recipe_of(), tmp_path / "whole", data=text)
    with pytest.raises(KeyboardInterrupt) as stopped:
        compress(source, recipe_of(), tmp_path / "out", data=text, progress=Stopping())
    assert stopped.value.__notes__ == [
        f"Stopped; the beginning of the healing is kept, and the compressed checkpoint in {tmp_path}/out.unhealed: the same "
        "command goes on from there."
    ]
    assert (tmp_path / "out.unhealed").is_dir()
    with pytest.raises(UserError, match="another run"):
        compress(source, recipe_of(), tmp_path / "out", data=text, seed=1)
    result = compress(source, recipe_of(), tmp_path / "out", data=text)
    assert files(result.out) == files(whole.out)
    assert not (tmp_path / "out.unhealed").exists()


class Failing(Silent):
    """Fails at a step of the training, as a full disk does."""

    def train(self, done: int, total: int, figures: str) -> None:
        if done == total // 2:
            raise UserError("the disk is full.")


def test_what_is_kept_of_a_healing_that_fails(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.healing.loop.SECONDS_BETWEEN_STATES", 0)
    source, out = tiny_model("llama"), tmp_path / "out"
    with pytest.raises(UserError) as failed:
        compress(source, recipe_of(batch=2), out, data=text, progress=Failing())
    assert str(failed.value) == (
        f"the disk is full. The healing at step 4 is kept in {out}.partial: the same command goes on from there; with other "
        f"options or another model it needs --restart. The compressed checkpoint is kept in {out}.unhealed."
    )
    notes: list[str] = []

    class Listening(Silent):
        def note(self, note: str) -> None:
            notes.append(note)

    compress(source, recipe_of(batch=2), out, data=text, progress=Listening())
    assert any(note.startswith("healing goes on at step 4 of 8") for note in notes)
    assert not any("block" in note and "done" in note for note in notes)


def test_the_text_of_the_report_is_named_without_its_folder(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    result = compress(tiny_model("llama"), recipe_of(data=text), tmp_path / "out")
    assert str(tmp_path) not in (result.out / "compress.json").read_text()


def test_what_cannot_be_healed_is_refused_before_any_work(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    with pytest.raises(UserError, match="nothing to train as 'values'"):
        compress(tiny_model("llama"), recipe_of(train=["values"]), tmp_path / "out", data=text)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": "many"}, "heal.tokens"),
        ({"rate": 0}, "heal.rate"),
        ({"train": []}, "heal.train"),
        ({"los": "kl"}, "did you mean 'loss'"),
    ],
)
def test_a_wrong_key_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        recipe_of(**changes)


def test_tokens_are_read_with_their_unit() -> None:
    assert recipe_of(tokens="2M").heal.tokens == 2_000_000  # type: ignore[union-attr]
    assert recipe_of(tokens="500k").heal.tokens == 500_000  # type: ignore[union-attr]


def test_a_text_that_is_too_short_to_heal_on_is_refused_before_the_steps(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words, one window and no more")
    with pytest.raises(UserError, match="fewer than two sequences of 32"):
        compress(tiny_model("llama"), recipe_of(data=str(short)), tmp_path / "out", data=text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.txt", "text.txt"]
