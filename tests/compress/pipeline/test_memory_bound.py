"""What a bound of memory changes of a run: its memory, and no byte of what it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import compress
from compress.errors import UserError
from compress.planning import make
from compress.planning.economy import MemoryBound, Promised
from compress.planning.memory import Economy

SETTINGS = {"quantize.group_size": 32}


def _run(model: Path, out: Path, recipe: str, format: str = "auto") -> dict[str, bytes]:
    compress.compress(
        model, recipe, out, samples=4, length=32, settings=SETTINGS, format=format, device="cpu"
    )
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("family", "recipe", "format"),
    [
        ("llama", "w4-gptq", "auto"),
        ("llama", "w4-awq", "auto"),
        ("mixtral", "w4-gptq", "auto"),
        ("mixtral", "w4-gptq", "dense"),
        ("qwen3_moe", "w3-gptq", "auto"),
    ],
)
def test_passes_and_files_change_no_byte(
    family: str,
    recipe: str,
    format: str,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(family)
    free = _run(model, tmp_path / "free", recipe, format)
    promised = Promised(MemoryBound(1 << 40, 0), Economy(in_memory=0, passes=3), 0)
    monkeypatch.setattr(make, "promise", lambda *arguments, **options: promised)
    monkeypatch.setattr(compress.api.steps, "_bound", lambda memory, on_device, device: promised.bound)
    assert _run(model, tmp_path / "bound", recipe, format) == free


def test_a_bound_that_is_not_kept_is_told(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = Promised(MemoryBound(1, 0), Economy(), 0)
    monkeypatch.setattr(make, "promise", lambda *arguments, **options: promised)
    done = compress.compress(tiny_model("llama"), "w4-rtn", tmp_path / "out", settings=SETTINGS, memory="1GB")
    assert any("more than the 1 B of --memory" in note for note in done.report.notes)
    assert any("Python and its libraries take" in note for note in done.report.notes)


def test_from_python(tiny_model: Callable[..., Path]) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="--memory 1.05 MB is too little for this run: it takes"):
        compress.plan(model, "w4-rtn", settings=SETTINGS, memory="1MiB")
    with pytest.raises(UserError, match="is no size"):
        compress.plan(model, "w4-rtn", settings=SETTINGS, memory="much")
    assert compress.plan(model, "w4-rtn", settings=SETTINGS, memory=1 << 40).promised is not None


def test_a_bound_of_an_accelerator_where_there_is_none(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="this run is on the CPU: give --memory"):
        compress.compress(model, "w4-rtn", tmp_path / "out", device="cpu", device_memory="8GB")
    with pytest.raises(UserError, match="--device-memory"):
        compress.plan(model, "w4-rtn", device_memory="much")
