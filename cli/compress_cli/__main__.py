"""`python -m compress_cli`: the same as `compress`."""

from __future__ import annotations

from compress_cli.main import app

app(prog_name="compress")
