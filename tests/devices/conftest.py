"""The stand-in device for the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of this folder first: torch's autograd counts the devices once, at the first backward of a process."""
    here = Path(__file__).parent
    items.sort(key=lambda item: here not in item.path.parents)


@pytest.fixture(scope="session")
def standin() -> ModuleType:
    """The module of the device."""
    return _standin()


@pytest.fixture
def traffic(standin: ModuleType) -> Iterator[Any]:
    """The device exists while the test runs; its transfers and reads are counted here."""
    with standin.standin_device() as counted:
        yield counted
