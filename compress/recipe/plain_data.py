"""Limits on the data of a recipe before anything reads it: YAML aliases make a small file into endless data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.errors import UserError

MOST_VALUES = 100_000
"""Values in a recipe; one that an alias repeats counts every time."""
DEEPEST = 50


def check_plain_data(data: Any, origin: str) -> None:
    """Refuse data that is too large, nested too deeply, or that holds text which is not valid UTF-8.

    Args:
        data: mappings, lists and values as YAML has them; a value may appear in several places, also in itself.
        origin: the name of the recipe, for the message.

    Raises:
        UserError: the data is over one of the limits.
    """
    todo, count = [(data, 0)], 0
    while todo:
        value, depth = todo.pop()
        count += 1
        if depth > DEEPEST:
            raise UserError(
                f"{origin} is nested more than {DEEPEST} levels deep, or a value in it contains itself"
            )
        if isinstance(value, str):
            _check_text(value, origin)
        inner = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        if not isinstance(inner, (list, tuple)):
            continue
        if count + len(todo) + len(inner) > MOST_VALUES:
            raise UserError(f"{origin} has more than {MOST_VALUES} values: its aliases repeat too much")
        todo.extend((item, depth + 1) for item in inner)


def _check_text(text: str, origin: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{origin} holds text that is not valid UTF-8") from None
