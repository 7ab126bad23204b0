"""Healing from end to end: a better checkpoint of the same layout and bytes, which `verify` accepts; and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from compress import load, verify
from compress.errors import UserError
from compress.healing import loop, stage
from compress.healing.samplers.uniform import Uniform
from compress.healing.stage import Healed, heal
from compress.report.schema import Report
from compress.system.progress import Silent

SHORT: dict[str, Any] = {
    "tokens": 1024,
    "length": 32,
    "batch": 4,
    "holdout": 4,
    "evaluations": 4,
    "rate": 0.02,
}
Heal = Callable[..., Healed]
Compressed = Callable[..., tuple[Path, Path]]
CELLS = [
    ("grid", ["norms"], "llama"),
    ("grid", ["codes", "scales"], "llama"),
    ("grid", ["scales"], "llama"),
    ("grid", ["bits", "scales"], "llama"),
    ("symmetric", ["scales"], "gpt2"),
    ("symmetric", ["codes", "norms"], "llama"),
    ("nf4", ["scales"], "llama"),
    ("nvfp4", ["scales"], "llama"),
    ("sparse", ["values"], "llama"),
    ("2:4", ["values"], "llama"),
    ("sparse", ["smallest"], "llama"),
    ("sparse-grid", ["scales"], "llama"),
    ("low-rank", ["factors"], "llama"),
    ("sum", ["factors", "scales"], "llama"),
    ("low-rank", ["nested"], "llama"),
    ("sum", ["sorsa", "scales"], "llama"),
    ("symmetric", ["scales"], "mixtral"),
]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize(("name", "train", "family"), CELLS)
def test_a_healed_checkpoint_is_nearer_to_the_dense_model_in_the_same_bytes(
    healed: Heal, compressed: Compressed, name: str, train: list[str], family: str
) -> None:
    result = healed(name, train, family)
    before, source = compressed(name, family)
    figures = result.report.healing
    assert figures is not None
    assert figures.end_kl < figures.start_kl
    assert set(figures.trained) == set(train)
    assert all(count > 0 for count in figures.trained.values())
    verify(result.out, source)
    ours, theirs = tensors(result.out), tensors(before)
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }
    assert any(not torch.equal(ours[n].view(torch.uint8), theirs[n].view(torch.uint8)) for n in ours)
    sizes = [sum(file.stat().st_size for file in one.glob("*.safetensors")) for one in (result.out, before)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("name", "format", "kinds"),
    [
        ("w4", "gptq", {"norms", "scales"}),
        ("w4", "awq", {"norms", "scales"}),
        ("w4-affine", "mlx", {"norms", "scales"}),
        ("grid", "dense", {"norms"}),
    ],
)
def test_other_programs_forms_are_healed_in_their_own_layout(
    healed: Heal, compressed: Compressed, name: str, format: str, kinds: set[str]
) -> None:
    result = healed(name, None, format=format, tokens=512)
    before, source = compressed(name, "llama", format)
    assert result.plan.format == format
    assert result.report.healing is not None
    assert set(result.report.healing.trained) == kinds
    verify(result.out, source)
    ours, theirs = tensors(result.out), tensors(before)
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }


def test_state_on_disk_and_a_growing_batch_leave_nothing_behind(healed: Heal) -> None:
    plain = healed("grid", ["norms", "scales"])
    off = healed("grid", ["norms", "scales"], offload=True)
    ours, theirs = tensors(plain.out), tensors(off.out)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {file.name for file in off.out.iterdir()} == {file.name for file in plain.out.iterdir()}
    growing = healed("grid", ["norms", "scales"], schedule="growing", batch=1, tokens=512).report.healing
    assert growing is not None
    assert growing.steps == growing.planned_steps < 16
    assert growing.tokens == 512


def test_a_gguf_file_is_refused(compressed: Compressed, text: Path, tmp_path: Path) -> None:
    before, source = compressed("q4_0", "llama", "gguf")
    with pytest.raises(UserError, match=r"is a gguf file.*compress export --format gguf"):
        heal(before, source=source, data=str(text), settings=SHORT, new=tmp_path / "new")


def test_what_is_not_trained_keeps_its_bytes(healed: Heal, compressed: Compressed) -> None:
    ours, theirs = tensors(healed("grid", ["norms"]).out), tensors(compressed("grid")[0])
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed
    assert all("norm" in name for name in changed)


def test_the_kept_kl_is_that_of_the_written_files(healed: Heal, compressed: Compressed, text: Path) -> None:
    """An independent witness: the written folder, loaded anew, has the KL on the held-out windows that the report says."""
    result = healed("grid", ["norms", "scales"])
    source = compressed("grid")[1]
    from compress.calibrate.corpus import load_apart  # noqa: PLC0415
    from compress.text.tokenize import load_tokenizer  # noqa: PLC0415

    _, judge = load_apart(
        str(text),
        load_tokenizer(source),
        samples=32,
        held_out=SHORT["holdout"],
        length=32,
        seed=0,
        places=Uniform().places,
    )
    with torch.no_grad():
        p, q = (load(one)(judge.tokens).logits.double().log_softmax(-1) for one in (source, result.out))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert result.report.healing is not None
    assert kl == pytest.approx(result.report.healing.end_kl, rel=2e-2)


def test_everything_that_a_checkpoint_has_is_trained_unless_named(healed: Heal) -> None:
    assert healed("grid", None).report.healing.trained.keys() == {"norms", "scales"}  # type: ignore[union-attr]
    assert healed("sum", None).report.healing.trained.keys() == {"norms", "scales", "factors"}  # type: ignore[union-attr]


def test_healing_in_place_replaces_the_checkpoint(compressed: Compressed, text: Path, tmp_path: Path) -> None:
    before, source = compressed("grid")
    out = tmp_path / "out"
    shutil.copytree(before, out)
    heal(out, source=source, data=str(text), train=["norms"], settings=SHORT)
    assert Report.read(out / "compress.json").healing is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    verify(out, source)


def test_a_healed_checkpoint_can_be_healed_again(
    healed: Heal, compressed: Compressed, text: Path, tmp_path: Path
) -> None:
    first, source = healed("grid", ["norms"]).out, compressed("grid")[1]
    again = heal(
        first, source=source, data=str(text), train=["scales"], settings=SHORT, new=tmp_path / "again"
    )
    verify(again.out, source)
    recipe = again.plan.recipe.heal
    assert recipe is not None
    assert [one.name for one in recipe.earlier] == ["norms"]


class Stopping(Silent):
    """Stops the training after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def train(self, done: int, total: int, figures: str) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 3, 8])
def test_a_stopped_training_ends_in_the_same_bytes(
    compressed: Compressed, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_STATES", 0.0)
    before, source = compressed("grid")

    def run(new: Path, progress: Silent) -> Healed:
        return heal(before, source=source, data=str(text), settings=SHORT, new=new, progress=progress)

    whole = run(tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Stopping(after))
    assert (tmp_path / "stopped.partial" / "healing.safetensors").is_file()
    stopped = run(tmp_path / "stopped", Silent())
    for file in whole.out.glob("*.safetensors"):
        assert file.read_bytes() == (stopped.out / file.name).read_bytes()
    assert whole.report.healing is not None
    assert stopped.report.healing is not None
    assert whole.report.healing.points == stopped.report.healing.points
    assert not list(stopped.out.glob("healing*"))


def test_the_start_is_kept_where_training_only_harms(
    compressed: Compressed, text: Path, tmp_path: Path
) -> None:
    before, source = compressed("grid")
    settings = {**SHORT, "rate": 1.0, "schedule": {"name": "linear", "warmup": 0.0}, "patience": 2}
    result = heal(
        before, source=source, data=str(text), train=["norms"], settings=settings, new=tmp_path / "new"
    )
    figures = result.report.healing
    assert figures is not None
    assert figures.best_step == 0
    assert figures.end_kl == figures.start_kl
    ours, theirs = tensors(result.out), tensors(before)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert figures.steps < figures.planned_steps
    assert "did not fall" in figures.ended


def test_another_source_is_refused(
    compressed: Compressed, text: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    before, _ = compressed("grid")
    other = tmp_path / "other"
    shutil.copytree(tiny_model("llama"), other)
    file = other / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="is not what it is in the source|is not the source's weight"):
        heal(before, source=other, data=str(text), settings=SHORT, new=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tokens": 0}, "^heal: 'tokens': input should be greater than or equal to 2, not 0"),
        ({"hold_out": 3}, "^heal: unknown key 'hold_out'; did you mean 'holdout'"),
        ({"cache": {"k": 0}}, "^heal: 'cache.k'"),
    ],
)
def test_settings_that_cannot_be_are_named_as_they_were_given(
    tmp_path: Path, tiny_model: Callable[..., Path], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        heal(tmp_path / "out", source=tiny_model("llama"), train=["norms"], settings=settings)


def test_the_checkpoint_is_no_source_of_itself(compressed: Compressed, text: Path, tmp_path: Path) -> None:
    before, _ = compressed("grid")
    with pytest.raises(UserError, match="is the compressed checkpoint itself: name the dense one"):
        heal(before, source=before, data=str(text), settings=SHORT, new=tmp_path / "new")


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (["values"], "nothing to train as 'values'"),
        (["factors"], "nothing to train as 'factors'"),
        (["scale"], "did you mean 'scales'"),
        ([{"name": "scales", "zeros": True}], "has no option 'zeros'"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    compressed: Compressed, text: Path, tmp_path: Path, train: list[object], sentence: str
) -> None:
    before, source = compressed("grid")
    with pytest.raises(UserError, match=sentence):
        heal(before, source=source, data=str(text), train=train, settings=SHORT, new=tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_calibration_text_that_is_not_here_is_named(compressed: Compressed, tmp_path: Path) -> None:
    """The checkpoint knows the name of its text alone."""
    before, source = compressed("grid")
    with pytest.raises(UserError, match=r"was calibrated with .*\.txt, which is not here: name the text"):
        heal(before, source=source, train=["norms"], settings=SHORT, new=tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_short_is_refused(
    compressed: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, source = compressed("grid")
    monkeypatch.setattr(stage, "verify", lambda *_, **__: pytest.fail("the checkpoint was read"))
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    with pytest.raises(UserError, match="fewer than two sequences"):
        heal(before, source=source, data=str(short), settings=SHORT, new=tmp_path / "new")


def nan_of(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint one of whose weights is no number."""
    shutil.copytree(source, folder)
    changed = tensors(folder)
    name = next(one for one in changed if one.endswith("q_proj.weight"))
    changed[name][0, 0] = torch.nan
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("base", "settings", "sentence"),
    [
        ("low-rank", {"train": ["bone"]}, r"that of model\.layers\.0\.self_attn\.q_proj is not: compress"),
        ("grid", {"train": ["norms"], "penalties": "orthonormal"}, "finds nothing to act on"),
        ("grid", {"train": ["norms"], "schedule": "refined"}, "schedule 'refined' needs the option 'norms'"),
        ("nan", {"train": ["norms"]}, "the held-out KL of the checkpoint is no number"),
    ],
)
def test_what_is_refused_before_the_first_step_leaves_nothing(
    compressed: Compressed,
    text: Path,
    tmp_path: Path,
    base: str,
    settings: dict[str, Any],
    sentence: str,
) -> None:
    before, source = compressed("grid" if base == "nan" else base)
    source = nan_of(source, tmp_path / "nan") if base == "nan" else source
    new = tmp_path / "out" / "new"
    train = settings["train"]
    rest = {key: value for key, value in settings.items() if key != "train"}
    with pytest.raises(UserError, match=sentence) as raised:
        heal(before, source=source, data=str(text), train=train, settings={**SHORT, **rest}, new=new)
    assert "kept in" not in str(raised.value)
    assert not new.parent.exists() or not list(new.parent.iterdir())


def test_a_quantized_model_is_no_source_of_what_was_made_from_a_dense_one(
    compressed: Compressed, text: Path, tmp_path: Path
) -> None:
    before, _ = compressed("grid")
    other, _ = compressed("sparse")
    with pytest.raises(UserError, match=r"is quantized .* and .* was made from a model that is not: name"):
        heal(before, source=other, data=str(text), settings=SHORT, new=tmp_path / "new")


def test_more_tokens_than_memory_holds_are_refused(
    compressed: Compressed, text: Path, tmp_path: Path
) -> None:
    before, source = compressed("grid")
    settings = {**SHORT, "tokens": "1000B"}
    with pytest.raises(UserError, match=r"1,000,000,000,000 tokens take 8\.00 TB of memory, and .* are free"):
        heal(before, source=source, data=str(text), settings=settings, new=tmp_path / "new")
