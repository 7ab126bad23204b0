"""Lazy import: a package whose names are imported when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Module ``__getattr__`` (PEP 562): imports a name from its module at its first use and keeps it.

    Args:
        package: ``__name__`` of the module that the names are attributes of.
        homes: name → ``module`` (the name is that module) or ``module:attribute``.

    Returns:
        The function to bind to ``__getattr__`` in ``package``.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = homes[name].partition(":")
        value = importlib.import_module(module)
        if attribute:
            value = getattr(value, attribute)
        setattr(sys.modules[package], name, value)
        return value

    return find
