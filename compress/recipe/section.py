"""What every section of a recipe is, and how a method stands in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of a recipe: frozen, and a key that it does not have is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Method(Section):
    """A solver or a score by name, with its own options."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)


def as_method(value: Any) -> Any:
    """``gptq`` or ``{name: gptq, damping: 0.02}`` → name and options."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and "name" in value and "options" not in value:
        return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
    return value


def as_methods(value: Any) -> Any:
    """One method or a list of them → a list for :class:`Method`."""
    return [as_method(method) for method in value] if isinstance(value, list | tuple) else [as_method(value)]
