"""Compress: makes Hugging Face models smaller and faster, and verifies what it writes.

``import compress`` takes no time: torch and transformers are imported when a function first needs them. From then on
transformers' ``from_pretrained`` reads native checkpoints too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.errors import UserError
from compress.runtime.registration import register as _register
from compress.system.lazy import lazy_attributes as _lazy_attributes

if TYPE_CHECKING:
    from compress import api
    from compress.api import (
        compress,
        compress_to_budget,
        evaluate,
        export,
        heal,
        load,
        pack,
        plan,
        plan_budget,
        push_to_hub,
        sweep,
        unpack,
        verify,
    )
    from compress.recipe.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "UserError",
    "api",
    "compress",
    "compress_to_budget",
    "evaluate",
    "export",
    "heal",
    "load",
    "pack",
    "plan",
    "plan_budget",
    "push_to_hub",
    "sweep",
    "unpack",
    "verify",
]

_HOMES = {
    "Recipe": "compress.recipe.recipe:Recipe",
    "api": "compress.api",
    **{
        name: f"compress.api:{name}"
        for name in (
            "compress",
            "compress_to_budget",
            "evaluate",
            "export",
            "heal",
            "load",
            "pack",
            "plan",
            "plan_budget",
            "sweep",
            "push_to_hub",
            "unpack",
            "verify",
        )
    },
}

if not TYPE_CHECKING:
    __getattr__ = _lazy_attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    """The public names, whether they are imported yet or not."""
    return sorted({*globals(), *__all__})


# `AutoModelForCausalLM.from_pretrained` reads native checkpoints from here on.
_register()
