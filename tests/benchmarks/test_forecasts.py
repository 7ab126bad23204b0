"""The table of forecasts is what the plans of this version say, and shapes alone are enough for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.forecasts import FORMS, PAGE, Form, deep, forecast, row, write_headers

SMALL = Form("small", 128, 256, 4, 2, 5, 512, head=32)


def test_the_page_is_fresh() -> None:
    line = "| " + " | ".join(row(FORMS[0], "w4-gptq")) + " |"
    assert line in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", [SMALL, replace(SMALL, experts=4, chosen=2)])
def test_two_plans_tell_of_all_blocks(form: Form) -> None:
    found, whole = deep(form, "w4-gptq"), forecast(form, "w4-gptq")
    assert found.seconds == pytest.approx(whole.seconds, rel=1e-6)  # headers grow by digits
    assert found.memory == whole.memory
    assert found.source == pytest.approx(whole.source, abs=512)
    assert found.output == pytest.approx(whole.output, abs=512)


def test_a_checkpoint_of_headers_takes_no_disk(tmp_path: Path) -> None:
    write_headers(tmp_path, replace(SMALL, hidden=4096, ffn=16384))
    files = [path.stat() for path in tmp_path.glob("*.safetensors")]
    assert sum(file.st_size for file in files) > 10**9
    assert sum(file.st_blocks * 512 for file in files) < 10**6
