"""The benchmark of a GPU, on the CPU: every item is made, failures become rows, and a process that dies is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.ops.table import prepare

from benchmarks.gpu import correctness, processes, timing
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.weights import exact, weights
from benchmarks.gpu.work import Request, attempt, is_sticky

REQUEST = Request("cpu", True, "unused")


@pytest.mark.parametrize("part", list(PARTS))
def test_items_of_every_part_have_different_names(part: str) -> None:
    names = [item.name for item in PARTS[part].items(REQUEST)]
    assert names
    assert len(set(names)) == len(names)


def test_every_weight_is_multiplied_by_the_reference() -> None:
    torch.manual_seed(0)
    for weight in weights():
        if weight.shape[0] > 40:
            continue
        layout, tensors = weight.make()
        wide = exact(layout, tensors, weight.shape)
        assert wide.dtype == torch.float64
        assert bool(wide.isfinite().all()), weight.name
        x = torch.randn(2, weight.shape[1])
        got = prepare(layout, tensors, weight.shape, "cpu", "reference")(x).double()
        tolerance = 3e-2 if weight.loose else 1e-4
        assert float((got - x.double() @ wide.T).norm()) <= tolerance * float((x.double() @ wide.T).norm())


def test_a_wrong_product_is_reported() -> None:
    weight = next(iter(weights()))
    layout, tensors = weight.make()
    wide = exact(layout, tensors, weight.shape)
    prepared = prepare(layout, tensors, weight.shape, "cpu", "reference")
    right = correctness._errors(prepared, wide, None, (1,), "cpu")
    wrong = correctness._errors(prepared, wide * 1.5, None, (1,), "cpu")
    assert right["wrong"] == []
    assert [text.split(":")[0] for text in wrong["wrong"]][:4] == [
        "bfloat16 1 rows",
        "bfloat16 bias and residual",
        "bfloat16 gradient",
        "bfloat16 gather",
    ]
    rows = [{"name": "w", "backends": {"triton": wrong}, "wrong": ["triton"]}]
    assert any(line.startswith("WRONG w triton bfloat16 1 rows") for line in correctness.summary(rows))


def test_an_error_becomes_a_row_with_the_end_of_its_traceback() -> None:
    row = attempt(lambda: {"value": [][0]})
    assert row["error"].startswith("IndexError")
    assert "list index out of range" in row["trace"][-1]
    assert not is_sticky(row)
    assert is_sticky({"error": "AcceleratorError: CUDA error: an illegal memory access was encountered"})


def test_a_table_of_times_compares_with_bf16_and_the_bandwidth() -> None:
    line: dict[str, Any] = {"rows": 1, "ms": 0.02, "graph_ms": 0.01, "gb_per_s": 500.0, "tflop_per_s": 1.0}
    rows = [
        {"name": "copy", "gb_per_s": 1000.0},
        {
            "name": "bf16",
            "weight": "bf16",
            "shape": [4, 4],
            "table": [{**line, "graph_ms": 0.04, "ms": 0.04}],
        },
        {"name": "w4", "weight": "w4", "shape": [4, 4], "table": [line]},
        {"name": "bad", "error": "ValueError: no"},
    ]
    lines = timing.summary(rows)
    assert lines[0] == "copy 1000 GB/s"
    assert lines[1].startswith("bad: ValueError")
    assert "1: 20/10us 4.00x 50% 1T" in lines[3]


FAKE = """
import json, os, sys
rows, items = sys.argv[sys.argv.index("--rows") + 1], sys.argv[sys.argv.index("--items") + 1 :]
with open(rows, "a") as file:
    for item in map(int, items):
        if item == 1:
            print("it broke", flush=True)
            os._exit(9)
        file.write(json.dumps({"item": item, "name": "x", "value": os.getpid()}) + chr(10))
        file.flush()
        if item == 2:
            sys.exit(3)
"""


def test_a_process_that_dies_or_loses_its_gpu_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fake" / "benchmarks" / "gpu"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "worker.py").write_text(FAKE)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "fake"), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.chdir(tmp_path / "fake")
    rows = processes.carry_out("fake", REQUEST, ["a", "b", "c", "d"], 1, 20, tmp_path / "rows")
    assert [row["name"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[1]["error"] == "the process ended with 9"
    assert rows[1]["trace"] == ["it broke"]
    assert len({rows[0]["value"], rows[2]["value"], rows[3]["value"]}) == 3
    json.dumps(rows)


def test_what_is_not_done_in_time_says_so(tmp_path: Path) -> None:
    rows = processes.carry_out("correctness", REQUEST, ["a"], 1, 0.0, tmp_path)
    assert rows == [{"item": 0, "error": "not done within 0 s", "name": "a"}]
