"""`run` and `verify` open the output in a process of its own, or say why they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from compress_cli.main import app
from typer.testing import CliRunner, Result

from compress.verification import fresh_process


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _said(result: Result) -> str:
    return " ".join(result.output.split())


def test_run_and_verify_open_the_output(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_process, "LARGEST", 1 << 30)
    model, out = tiny_model("llama"), tmp_path / "out"
    written = _call("run", model, "-r", "w4-rtn", "-o", out)
    assert written.exit_code == 0, written.output
    assert "Transformers opens it in a process of its own" in _said(written)
    left_out = _call("verify", out, "--source", model, "--no-fresh-process")
    assert left_out.exit_code == 0
    assert "process of its own" not in _said(left_out)
    monkeypatch.setattr(fresh_process, "_SCRIPT", "raise ValueError('of transformers')")
    failed = _call("verify", out, "--source", model)
    assert failed.exit_code == 2
    assert "does not open it in a fresh process: ValueError: of transformers" in _said(failed)


def test_a_large_model_and_another_programs_format_are_left_out_with_the_reason(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    large = _call("run", model, "-r", "w4-rtn", "-o", tmp_path / "a")
    assert "Not opened with transformers in a process of its own: the model is larger than" in _said(large)
    gguf = _call("run", model, "-r", "q8_0", "-o", tmp_path / "b")
    assert gguf.exit_code == 0, gguf.output
    assert "process of its own: a GGUF file is for llama.cpp" in _said(gguf)
