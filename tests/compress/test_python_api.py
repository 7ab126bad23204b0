"""What Python callers give and get: loaded models, data, dtypes, progress, device maps, frames; mistakes are sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compress
from compress.errors import UserError
from compress.recipe.recipe import Recipe
from compress.system.device import dtype_name
from compress.system.progress import ProgressEvent

TEXTS = ["The quick brown fox jumps over the lazy dog, and adds first to second.\n"] * 40
GPTQ = {"steps": [{"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"}]}
SMALL: dict[str, Any] = {"samples": 4, "length": 32}
TOKENS = torch.arange(2, 26).view(2, 12)


@pytest.fixture(scope="module")
def source(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "out"
    return compress.compress(source, GPTQ, folder, data=TEXTS, **SMALL).out


def test_a_loaded_model_gives_the_same_bytes_as_its_folder(source: Path, out: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    events: list[ProgressEvent] = []
    result = compress.compress(
        model, GPTQ, tmp_path / "out", data=iter(TEXTS), progress=events.append, **SMALL
    )
    ours, theirs = (folder / "model.safetensors" for folder in (result.out, out))
    assert ours.read_bytes() == theirs.read_bytes()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    last = events[-1]
    assert last.finished
    assert (last.block, last.blocks, last.weights, last.total_weights) == (2, 2, 14, 14)
    assert last.done_bytes == last.total_bytes > 0
    assert {"solve", "verify"} <= {event.step for event in events}


def test_without_a_folder_the_packed_model_comes_back(source: Path, out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    made = compress.compress(
        model, Recipe.parse({"name": "mine", **GPTQ}), data=TEXTS, tokenizer=tokenizer, **SMALL
    )
    expected = compress.load(out)
    with torch.no_grad():
        assert torch.equal(made.model(TOKENS).logits, expected(TOKENS).logits)
    assert made.plan.total_bytes == made.report.bytes.actual
    assert any(type(module).__name__ == "PackedLinear" for module in made.model.modules())


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16", torch.bfloat16])
def test_dtypes_are_torchs_or_names(name: Any, out: Path) -> None:
    assert dtype_name(name) == "bf16"
    assert compress.load(out, dtype=name).dtype == torch.bfloat16


def test_other_dtypes_are_refused() -> None:
    assert dtype_name(None) == dtype_name("auto") == "auto"
    assert dtype_name(torch.float32) == dtype_name("float") == "fp32"
    for wrong in ("int8", torch.int8, 7):
        with pytest.raises(UserError, match="there is no dtype"):
            dtype_name(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu"), {"model": "cpu", "lm_head": "cpu"}]
)
def test_device_maps_of_one_device(device_map: Any, out: Path) -> None:
    if not torch.cuda.is_available():
        assert compress.load(out, device_map=device_map).device.type == "cpu"


def test_a_device_map_of_several_places(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "compress.runtime.load.resolve_device", lambda name: asked.append(name) or torch.device("cpu")
    )
    monkeypatch.setattr("compress.runtime.load.dispatch_model", lambda model, device_map: (model, device_map))
    model, places = compress.load(out, device_map={"model": 0, "lm_head": "cpu"})
    assert places == {"model": 0, "lm_head": "cpu"}
    assert asked == ["cuda:0", "cpu"]
    with pytest.raises(UserError, match="device_map is a device or a mapping"):
        compress.load(out, device_map=3.5)  # type: ignore[arg-type]


def test_results_as_frames(source: Path, out: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    planned = compress.plan(source, GPTQ)
    table = planned.to_frame()
    assert table["bytes"].sum() == sum(weight.nbytes for weight in planned.weights)
    report = compress.api.Report.read(out / "compress.json").to_frame()
    assert list(report.index) == list(table.index)
    text = tmp_path / "text.txt"
    text.write_text("".join(TEXTS))
    figures = compress.evaluate(source, out, text=text, length=16, limit=2, dtype=torch.float32, speed=False)
    rows = figures.to_frame()
    assert list(rows.index) == [source.name, out.name]
    assert rows.loc[out.name, "kl"] == figures.candidates[0].kl
    assert list(compress.compress(source, "w8").to_frame().index) == list(table.index)


def test_mistakes_are_sentences(source: Path, out: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    meta = AutoModelForCausalLM.from_pretrained(source)
    meta.to("meta")
    wrong: list[Callable[[], Any]] = [
        lambda: compress.compress(7, "w8", new),  # type: ignore[arg-type]
        lambda: compress.compress(meta, "w8", new),
        lambda: compress.compress(source, 7, new),  # type: ignore[arg-type]
        lambda: compress.compress(source, {"steps": 7}, new),
        lambda: compress.compress(source, "w8", 7),  # type: ignore[call-overload]
        lambda: compress.compress(source, "w4-gptq", new, data=7),
        lambda: compress.compress(source, "w4-gptq", new, data=[3.5]),
        lambda: compress.compress(source, "w8", new, seed="1"),
        lambda: compress.compress(source, "w8", new, dtype=torch.int8),
        lambda: compress.compress(source, "w8", new, device=7),
        lambda: compress.compress(source, "w8", new, progress=7),
        lambda: compress.compress(source, "w4-gptq", new, samples="many"),
        lambda: compress.compress(source, "w8", new, settings=7),
        lambda: compress.evaluate(source, out, text=7),  # type: ignore[arg-type]
        lambda: compress.evaluate(source, out, text="embedded", length="long"),  # type: ignore[arg-type]
        lambda: compress.compress(source, "w8", new, settings={7: 8}),  # type: ignore[dict-item]
        lambda: compress.compress(source, "w8", new, format=7),
        lambda: compress.compress(source, "w8", new, gradients=7),
        lambda: compress.compress(source, "w8", new, memory=[7]),
        lambda: compress.compress(source, "w8", new, bos="yes"),
        lambda: compress.compress(source, "w4-gptq", new, samples=2.5),
        lambda: compress.compress(source, "w4-gptq", new, data=TEXTS[0] * 9),
        lambda: compress.evaluate(source, out, text="embedded", tasks="hellaswg"),
        lambda: compress.load(7),  # type: ignore[arg-type]
        lambda: compress.load(meta),  # type: ignore[arg-type]
        lambda: compress.load("x" * 999),
        lambda: compress.verify(7, source),  # type: ignore[arg-type]
    ]
    for call in wrong:
        with pytest.raises(UserError):
            call()
    assert not new.exists()


def test_errors_about_given_data_do_not_name_a_file_of_ours(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^The calibration data has \d+ tokens"):
        compress.compress(source, GPTQ, tmp_path / "out", data=["hi"], **SMALL)
    with pytest.raises(UserError, match="^the calibration data has neither"):
        compress.compress(source, GPTQ, tmp_path / "out", data=[{"foo": "hi"}], **SMALL)


def test_the_embedded_model_is_known_by_its_name_everywhere(tmp_path: Path) -> None:
    out = compress.compress("embedded", "w4-rtn", tmp_path / "out").out
    assert compress.verify(out, "embedded").packed == 42
    exported = compress.export("embedded", tmp_path / "gguf", format="gguf")
    assert exported.nbytes > 0
    with pytest.raises(UserError, match="tokens"):
        compress.heal(out, source="embedded", settings={"tokens": -1})
