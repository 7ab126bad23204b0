"""What the README, the docs and the help texts tell people to type exists, and every link leads somewhere."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from compress_cli.main import app
from typer.main import get_command

from benchmarks.servers.table import served_by_table
from compress.recipe.recipe import shipped
from compress.recipe.registry import SOLVERS, TRANSFORMS
from tools.site import METHODS, method_pages, outside_links_as_text

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
KNOWN = {name: one.command for name, one in get_command(app).commands.items()}  # type: ignore[attr-defined]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[str]:
    return [
        text for page in PAGES.values() for language, text in FENCE.findall(page) if language in languages
    ]


def commands() -> list[str]:
    """Every command line of the README's blocks and of the help texts."""
    lines = [part.strip() for text in blocks("sh", "bash", "console") for part in re.split(r"\n|&&", text)]
    helps = [command.help or "" for command in KNOWN.values()]
    spans = [
        span for text in (*PAGES.values(), *helps) for span in re.findall(r"`(compress [a-z][^`]*)`", text)
    ]
    return [line for line in (*lines, *spans) if line.startswith("compress ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_and_option_exists(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert words[0] in KNOWN
    options = {
        option for parameter in KNOWN[words[0]].params for option in parameter.opts + parameter.secondary_opts
    }
    used = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    assert used <= options | {"--help"}


@pytest.mark.parametrize("code", blocks("python"))
def test_every_name_in_the_python_snippets_exists(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0].startswith("compress"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"(?:\]\(|src=\")([^)#\"]+)", PAGES[page])
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks("sh", "bash", "console")))) <= targets


def test_every_shipped_recipe_is_in_the_table() -> None:
    page = PAGES[ROOT / "docs" / "recipes.md"]
    missing = [name for name in shipped() if f"| `{name}`" not in page]
    assert missing == [], "run: python -m tools.readme --recipes-only"


def test_every_solver_and_transform_gets_a_page_in_the_site() -> None:
    pages = method_pages()
    assert len(pages) == len({**SOLVERS, **TRANSFORMS})
    title, text = pages["methods/coordinate-descent.md"]
    assert title == "CoordinateDescent"
    assert "`solver: coordinate_descent`" in text
    assert "::: compress.solvers.coordinate_descent\n" in text
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert [entry for entry in nav if METHODS in entry]


def test_every_page_of_a_task_is_in_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.parent.name == "tasks"]
    assert pages
    assert [page for page in pages if f": {page}\n" not in nav] == []


def test_links_that_leave_the_pages_become_names() -> None:
    text = "[a](../CONTRIBUTING.md#x), [b](tasks/load.md), [`c`](../compress/api.py), ![d](../docs/d.png) [e](../docs/x.md)"
    assert outside_links_as_text(text, "index.md") == (
        "a (`CONTRIBUTING.md`), [b](tasks/load.md), `c`, ![d](../docs/d.png) [e](../docs/x.md)"
    )


def results(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_servers_in_the_readme_are_those_that_were_measured() -> None:
    """No figure is typed: the table is the one that the result file makes."""
    page = PAGES[ROOT / "README.md"]
    written = page.partition("<!-- served by -->\n")[2].partition("\n<!-- /served by -->")[0]
    assert written.partition("\n\nRecipes not run")[0] == served_by_table(results("servers")["rows"])


def test_the_counts_in_the_readme_are_those_of_the_result_files() -> None:
    text = " ".join(PAGES[ROOT / "README.md"].split())
    fuzz, kills, zoo = (results(name) for name in ("fuzz", "kills", "zoo"))
    seeing = sum(name.startswith("vision-language/") for name in zoo)
    said = {
        r"The fuzzer was run on ([\d,]+) of its": f"{fuzz['cases']:,}",
        r"while the code was mended: (\d+) faults": str(sum(fuzz["faults"].values())),
        r"(\d+) kills of five recipes": str(kills["kills"]),
        r"model classes of transformers and (\d+) vision-language models": str(seeing),
        r"(\d+) model classes of transformers": re.findall(
            r"Of (\d+) model types", PAGES[ROOT / "docs" / "models.md"]
        )[0],
    }
    assert len(kills["recipes"]) == 5
    found = {pattern: set(re.findall(pattern, text)) for pattern in said}
    assert found == {pattern: {value} for pattern, value in said.items()}
