"""What differs between two runs, in words."""

from __future__ import annotations

from typing import Any

import pytest

from compress.checkpoint.differences import differences

STEPS = [{"quantize": {"bits": 4}, "targets": ["linear", "experts"]}]


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {}, ""),
        ({"seed": 0}, {"seed": 0}, ""),
        ({"seed": 0}, {"seed": 1}, "seed (0, now 1)"),
        ({"seed": 0}, {}, "seed (0, now absent)"),
        ({"format": None}, {"format": "native"}, "format (null, now native)"),
        (
            {"recipe": {"steps": STEPS}},
            {"recipe": {"steps": [{**STEPS[0], "quantize": {"bits": 3}}]}},
            "recipe.steps.0.quantize.bits (4, now 3)",
        ),
        ({"tokens": "a" * 64}, {"tokens": "b" * 64}, "tokens"),
        ({"targets": ["a"]}, {"targets": ("a",)}, ""),
        ({"targets": ["a"]}, {"targets": ["a", "b"]}, 'targets (["a"], now ["a", "b"])'),
        ({}, {"a": {}}, ""),
    ],
)
def test_settings_are_named_by_dotted_keys(before: Any, now: Any, words: str) -> None:
    assert differences(before, now) == words


def test_long_values_and_long_lists_are_shortened() -> None:
    assert len(differences({"key": "x" * 1000}, {"key": "y" * 1000})) < 120
    before = {f"key{number}": 0 for number in range(50)}
    assert differences(before, {}).endswith("key3 (0, now absent) and 46 more")
