"""Import hook: a function that is called once, right after a module of another package is imported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(module: str, then: Callable[[ModuleType], None]) -> None:
    """Call ``then`` with ``module`` once it is imported: at once if it is, else at the end of its import.

    Args:
        module: dotted name; it is not imported here.
        then: must not import what imports ``module``, which may not be complete yet.
    """
    loaded = sys.modules.get(module)
    initializing = getattr(getattr(loaded, "__spec__", None), "_initializing", False)
    if loaded is not None and not initializing:
        then(loaded)
        return
    sys.meta_path.insert(0, _Finder(module, then))


class _Finder(MetaPathFinder):
    """Finds one module as the other finders do, with a loader that reports the end of its import."""

    def __init__(self, module: str, then: Callable[[ModuleType], None]) -> None:
        self._module, self._then = module, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's ordinary spec, its loader wrapped; ``None`` for every other module."""
        if fullname != self._module or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._then)
        return spec


class _Loader(Loader):
    """A loader that steps aside once the module is executed."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module that the wrapped loader makes."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, then make its spec as if this loader had never been there, then call the function."""
        self._loader.exec_module(module)
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._then(module)
