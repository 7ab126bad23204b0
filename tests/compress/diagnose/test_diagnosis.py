from __future__ import annotations

import math
from pathlib import Path

import pytest

from compress.diagnose import Diagnosis, Finding
from compress.errors import UserError

FINDING = Finding(
    "shape", "Shape", ("weight", "ν", "block"), (("q_proj", 1.5, 3), ("k_proj", math.inf, None)), "Do it."
)


def test_a_diagnosis_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "diagnosis.json"
    Diagnosis("m", "text.txt", (FINDING,)).save(path)
    found = Diagnosis.read(path)
    assert (found.model, found.data) == ("m", "text.txt")
    assert found.findings[0].rows == (("q_proj", 1.5, 3), ("k_proj", "inf", None))
    assert found.findings[0].advice == "Do it."
    found.save(path)
    assert Diagnosis.read(path) == found


ONE = '{"entry": "a", "title": "b", "columns": ["c"], "rows": [[1, 2]], "advice": "d"}'


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", *(f'{{"model": "m", "data": null, "findings": [{one}]}}' for one in ("{}", ONE))]
)
def test_what_is_no_diagnosis_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "diagnosis.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is no diagnosis"):
        Diagnosis.read(path)
    with pytest.raises(UserError, match="not written by compress"):
        Diagnosis("m", None, ()).save(path)
