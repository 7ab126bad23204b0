"""The table of `compress bench`: one row for each checkpoint, and their ratio where there are two."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from compress_cli import library
from compress_cli.main import app
from typer.testing import CliRunner

from compress.runtime.bench import BenchFigures, BenchSettings

DENSE = BenchFigures(
    name="dense",
    load_seconds=4.0,
    prefill_rates=(100.0, 300.0, 200.0),
    decode_rates=(10.0, 30.0, 20.0),
    memory_bytes=1_000_000,
    peak_bytes=2_000_000,
    device="cpu",
    dtype="bfloat16",
    threads=2,
)
PACKED = dataclasses.replace(
    DENSE, name="packed", load_seconds=1.0, decode_rates=(50.0,) * 3, memory_bytes=250_000, peak_bytes=None
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures in the place of measurements; what was asked for."""
    asked: list[Any] = []

    def measure(paths: list[str], settings: BenchSettings, *, rounds: int) -> list[BenchFigures]:
        asked.append((paths, settings, rounds))
        return [DENSE, PACKED][-len(paths) :]

    monkeypatch.setattr(library, "bench", measure)
    return asked


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_two_checkpoints_and_their_ratio(measured: list[Any]) -> None:
    shown = run("out", "--source", "model")
    (row,) = [line for line in shown.splitlines() if "against the first" in line]
    # Loads in a quarter of the time, decodes 2.5 times as fast, in a quarter of the memory; no peak is known.
    assert row.split("against the first")[1].split() == [
        "0.25",
        "×",
        "1.00",
        "×",
        "2.50",
        "×",
        "0.25",
        "×",
        "–",
    ]
    assert measured[0][0] == ["model", "out"]


def test_one_checkpoint_has_no_ratio(measured: list[Any]) -> None:
    shown = run("out")
    assert "packed" in shown
    assert "against the first" not in shown
    assert "Medians of 3; batch 1, 128 tokens and 32 new ones, bfloat16 on cpu, 2 threads." in shown


def test_options_reach_the_measurement(measured: list[Any]) -> None:
    run("out", "--prompt-length", "7", "--new-tokens", "5", "--batch", "3", "--repeats", "2", "--rounds", "4",
        "--threads", "1", "--dtype", "fp32")  # fmt: skip
    _, settings, rounds = measured[0]
    assert rounds == 4
    assert settings == BenchSettings(
        prompt_length=7, new_tokens=5, batch=3, repeats=2, threads=1, device="auto", dtype="fp32",
        trust_remote_code=False,
    )  # fmt: skip


def test_json_has_medians_and_settings(measured: list[Any]) -> None:
    data = json.loads(run("out", "--source", "model", "--json"))
    assert data["settings"]["prompt_length"] == 128
    assert [figures["decode"] for figures in data["figures"]] == [20.0, 50.0]
    assert [figures["prefill"] for figures in data["figures"]] == [200.0, 200.0]


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--new-tokens", "1"], ["--repeats", "0"]])
def test_numbers_out_of_range_are_refused(measured: list[Any], arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["bench", "out", *arguments]).exit_code == 2
    assert measured == []
