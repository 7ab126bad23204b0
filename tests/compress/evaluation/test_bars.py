from __future__ import annotations

import sys

import pytest
from tqdm import tqdm

from compress.evaluation.bars import bars_told_to


@pytest.mark.parametrize("ascii", [True, False])
def test_bars_are_told_and_the_rest_is_printed(capsys: pytest.CaptureFixture[str], ascii: bool) -> None:
    told: list[tuple[str, int, int]] = []
    with bars_told_to(lambda *step: told.append(step)):
        print("before", file=sys.stderr)
        for _ in tqdm(range(3), desc="Counting", mininterval=0, ascii=ascii):
            print("meanwhile", file=sys.stderr)
        for _ in tqdm(range(2), mininterval=0, ascii=ascii):
            pass
        print("after", file=sys.stderr)
    assert told[:4] == [("Counting", done, 3) for done in range(4)]
    assert ("", 0, 2) in told
    assert told[-1] == ("", 2, 2)
    assert capsys.readouterr().err == "before\n" + "meanwhile\n" * 3 + "after\n"


def test_bars_are_dropped_where_nobody_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with bars_told_to(None):
        list(tqdm(range(3)))
    assert capsys.readouterr().err == ""
