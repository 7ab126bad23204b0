"""The shipped table of servers is what was measured, and tells read, failed and not measured apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.servers.served import served
from compress.assets import served_file
from compress.formats.served import measured

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "servers.json"


def row(recipe: str, read: bool, version: str = "1.0", **changes: Any) -> dict[str, Any]:
    answer = {"perplexity": 8.5} if read else {"error": "no kernel"}
    return {"recipe": recipe, "format": "dense", "server": "vllm", "version": version, **answer, **changes}


def test_the_table_is_that_of_the_results() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    assert json.loads(served_file().read_text(encoding="utf-8")) == served(rows)


def test_read_is_what_every_model_was_read_of() -> None:
    rows = [
        row("w8", True),
        row("w8", False, "1.1"),
        row("w4", True),
        row("dense", True),
        row("w2", True, not_run="native"),
    ]
    assert [(one["recipe"], one["read"], one["version"]) for one in served(rows)] == [
        ("w4", True, "1.0"),
        ("w8", False, "1.1"),
    ]


def test_what_was_measured() -> None:
    assert measured("w4-gptq", "compressed-tensors", "vllm") == "read"
    assert measured("w3-gptq", "compressed-tensors", "vllm") == "failed"
    assert measured("w4-gptq", "native", "vllm") == "not measured"
