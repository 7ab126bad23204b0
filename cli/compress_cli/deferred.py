"""Deferred commands: listed by name and purpose, imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, cast

import typer
from typer.core import TyperCommand

from compress_cli.failures import ExplainedGroup
from compress_cli.status import status_shown

MARKUP: Literal["markdown"] = "markdown"


def _options(
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, help="Print each phase; `-vv` prints all that is logged."
        ),
    ] = 0,
) -> None:
    """The options that every command has."""


class Command(TyperCommand):
    """A command that shows on stderr what it is doing."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command under a status line."""
        verbosity = ctx.params.pop("verbose", 0)
        with status_shown(verbosity, quiet=bool(ctx.params.get("quiet"))):
            return super().invoke(ctx)


class Deferred(TyperCommand):
    """Stands for a command whose module is not imported yet.

    Args:
        name: of the command.
        home: ``module:function``.
        purpose: the first sentence of the function's docstring, for the list of commands.
    """

    def __init__(self, name: str, home: str, purpose: str) -> None:
        self._home = home
        super().__init__(name, short_help=purpose, rich_markup_mode=MARKUP)

    @cached_property
    def command(self) -> Any:
        """The command itself."""
        module, _, function = self._home.partition(":")
        app = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        app.command(self.name, cls=Command)(getattr(importlib.import_module(module), function))
        command = cast(Any, typer.main.get_command(app))
        command.params.extend(_shared_params())
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the command and have it read its arguments."""
        return self.command.make_context(info_name, args, parent=parent, **extra)


def _shared_params() -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(_options)
    return list(cast(Any, typer.main.get_command(app)).params)


class DeferredGroup(ExplainedGroup):
    """A group of deferred commands: :attr:`homes` lists them."""

    homes: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Name → home and purpose (:class:`Deferred`), in the order in which they are listed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update({name: Deferred(name, *about) for name, about in self.homes.items()})
