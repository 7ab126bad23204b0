"""Compress: turns a Hugging Face language model into a smaller and faster one, and proves it."""

from __future__ import annotations

from compress.api import compress, evaluate, export, heal, load, plan, verify
from compress.errors import UserError
from compress.recipe.recipe import Recipe
from compress.runtime.quantizer import register as _register

__version__ = "0.1.0"

__all__ = ["Recipe", "UserError", "compress", "evaluate", "export", "heal", "load", "plan", "verify"]

# `AutoModelForCausalLM.from_pretrained` reads native checkpoints from here on.
_register()
