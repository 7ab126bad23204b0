"""Registers the native form with transformers, without importing torch or transformers."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from compress.system.import_hooks import after_import

METHOD = "compress"
"""``quant_method`` in the ``config.json`` of a native checkpoint."""
_REGISTRY = "transformers.quantizers.auto"
_QUANTIZER = "compress.runtime.quantizer"


@dataclass(frozen=True)
class Deferred:
    """Stands for a class of :mod:`compress.runtime.quantizer` in transformers' registry until a checkpoint needs it.

    Transformers asks two things of an entry: to be called, and ``from_dict``.
    """

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make an instance."""
        return self._resolved()(*args, **kwargs)

    def from_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Make a configuration of the ``quantization_config`` of a checkpoint."""
        return self._resolved().from_dict(*args, **kwargs)

    def _resolved(self) -> Any:
        return getattr(importlib.import_module(_QUANTIZER), self.name)


def register() -> None:
    """Make the native form known to transformers, now or as soon as transformers is imported."""
    after_import(_REGISTRY, _register_in)


def _register_in(registry: ModuleType) -> None:
    registry.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, Deferred("NativeConfig"))
    registry.AUTO_QUANTIZER_MAPPING.setdefault(METHOD, Deferred("NativeQuantizer"))
