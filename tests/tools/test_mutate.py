"""The list of mutations does not rot, and the script tells noticed mutations from survivors."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    return module


MUTATE = script()
MUTANTS: tuple[Any, ...] = MUTATE.load_mutants(ROOT / "tests" / "mutants.py")


def test_every_mutation_still_applies() -> None:
    assert len(MUTANTS) >= 40
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        changed = MUTATE.mutated(text, mutant.old, mutant.new)
        assert changed != text
        compile(changed, mutant.file, "exec")


def test_every_mutation_names_tests_that_are_there() -> None:
    for mutant in MUTANTS:
        assert mutant.tests, mutant
        for test in mutant.tests:
            file, _, name = test.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), test


def test_a_line_is_replaced_at_its_own_indentation() -> None:
    text = "def f(x):\n    if x:\n        return 1\n    return 2\n"
    assert MUTATE.mutated(text, "if x:", "if False:") == text.replace("if x:", "if False:")
    for line in ("return", "if x", "return 3"):
        with pytest.raises(ValueError, match="0 times"):
            MUTATE.mutated(text, line, "pass")
    with pytest.raises(ValueError, match="2 times"):
        MUTATE.mutated("a = 1\na = 1\n", "a = 1", "a = 2")


@pytest.mark.parametrize(
    ("new", "name", "state"),
    [
        ("return a - b", "test_add", "killed"),
        ("return b + a", "test_add", "survived"),
        ("return a - b", "test_nothing", "survived"),
        ("return a +", "test_add", "error"),
        ("return a - b", "test_missing", "error"),
        ("return a + b + __import__('time').sleep(60)", "test_add", "killed"),
    ],
)
def test_outcomes(tmp_path: Path, new: str, name: str, state: str) -> None:
    source = "def add(a, b):\n    return a + b\n"
    (tmp_path / "mutated_sum.py").write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    first = "from mutated_sum import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
    tests = first + "\n\ndef test_nothing():\n    assert add\n"
    (tmp_path / "test_sum.py").write_text(tests)
    mutant = type(MUTANTS[0])("mutated_sum.py", "return a + b", new, (f"test_sum.py::{name}",))
    outcome = MUTATE.try_mutant(tmp_path, mutant, 120.0 if state != "killed" or "sleep" not in new else 3.0)
    assert outcome.state == state
    assert (tmp_path / "mutated_sum.py").read_text() == source
    recorded = MUTATE.record([outcome])
    assert recorded["mutants"] == 1
    assert recorded["survivors"] == (state != "killed")
