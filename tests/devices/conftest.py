"""The stand-in device for the tests of this folder, which run in a process of their own (:mod:`test_process`).

Once torch knows the device it stays, and other libraries take it for an accelerator; and autograd counts the devices at the
first backward of a process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

INSIDE = "COMPRESS_TESTS_STANDIN"
"""Set in that process."""

collect_ignore_glob = ["test_process.py"] if os.environ.get(INSIDE) else ["test_[!p]*.py"]


def _standin() -> ModuleType:
    """The module beside this file; tests are no package."""
    path = Path(__file__).parent / "standin.py"
    spec = importlib.util.spec_from_file_location("compress_tests_standin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def standin() -> ModuleType:
    """The module of the device."""
    return _standin()


@pytest.fixture
def traffic(standin: ModuleType) -> Iterator[Any]:
    """The device exists while the test runs; its transfers and reads are counted here."""
    with standin.standin_device() as counted:
        yield counted
