"""`compress inspect --diagnose`: tables with advice, JSON, and options that belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from compress_cli.main import app
from typer.testing import CliRunner

Tiny = Callable[..., Path]


def test_tables_and_advice(tiny_model: Tiny) -> None:
    done = CliRunner().invoke(
        app, ["inspect", str(tiny_model("llama")), "--diagnose", "--entries", "shape, norms"]
    )
    assert done.exit_code == 0, done.output
    assert "Shape of the weights" in done.output
    assert "mlp.up_proj" in done.output
    assert "Spectrum" not in done.output


def test_json(tiny_model: Tiny) -> None:
    done = CliRunner().invoke(app, ["inspect", str(tiny_model("llama")), "--diagnose", "--json"])
    findings = json.loads(done.stdout)["findings"]
    assert [finding["entry"] for finding in findings] == ["shape", "spectrum", "norms", "redundancy"]
    assert findings[0]["rows"][0]["weight"] == "self_attn.q_proj"


def test_options_of_the_diagnosis_alone_are_refused(tiny_model: Tiny) -> None:
    done = CliRunner().invoke(app, ["inspect", str(tiny_model("llama")), "--entries", "shape"])
    assert done.exit_code != 0
    assert "--diagnose" in str(done.exception) or "--diagnose" in done.output
