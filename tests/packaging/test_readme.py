"""What the README tells people to type exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from compress_cli.main import app
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(README) if language in languages]


def commands() -> list[str]:
    text = "\n".join(blocks("sh", "bash", "console")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("compress ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_and_option_exists(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    known = get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in known
    options = {
        option for parameter in known[words[0]].params for option in parameter.opts + parameter.secondary_opts
    }
    used = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    assert used <= options | {"--help"}


@pytest.mark.parametrize("code", blocks("python"))
def test_every_name_in_the_python_snippets_exists(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0].startswith("compress"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_link_into_the_repository_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks("sh", "bash", "console")))) <= targets
