"""Options of a method as a recipe gives them, held against the types of the fields that they fill."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compress.errors import UserError
from compress.recipe.mistakes import reason

_MOST = 1_000_000
"""The largest number that an option of a method takes: more steps, rows or tokens than that never end."""

_COUNTS = {"block", "points", "rows", "tokens", "tries"}
"""Whole numbers of which there must be at least one; others may be 0, which leaves a part of the method out."""


def checked_options(cls: Any, options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Options for the fields of a dataclass, lists as tuples where a field is one.

    Args:
        cls: the dataclass.
        options: field name → value, as YAML has it; every name must be a field.
        what: the method's kind and name, for the error sentence.

    Raises:
        UserError: a value of a wrong type or beyond any sensible range.
    """
    types = typing.get_type_hints(cls)
    return {
        name: _checked(value, types[name], name, f"{what}, option '{name}'")
        for name, value in options.items()
    }


def _checked(value: Any, kind: Any, name: str, where: str) -> Any:
    value = tuple(value) if isinstance(value, list) else value
    try:
        value = TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {reason(error.errors()[0])}, not {_short(value)}") from None
    for number in value if isinstance(value, tuple) else (value,):
        least = 1 if name in _COUNTS and kind is not float else 0
        if type(number) in (int, float) and not (math.isfinite(number) and least <= number <= _MOST):
            raise UserError(f"{where}: give a number from {least} to {_MOST}, not {_short(number)}")
    if value == ():
        raise UserError(f"{where}: give at least one number")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
