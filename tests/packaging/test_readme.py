"""What the README, the docs and the help texts tell people to type exists, and every link leads somewhere."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compress_cli.main import app
from typer.main import get_command

from benchmarks.servers.table import served_by_table, under_the_tables
from compress.evaluation import Evaluation
from compress.planning.coverage import ENOUGH
from compress.recipe.recipe import shipped
from compress.recipe.registry import SOLVERS, TRANSFORMS
from compress.verification.fresh_process import LARGEST
from tools import readme
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
    rows = results("servers")["rows"]
    assert written == served_by_table(rows) + under_the_tables(rows, shipped())


def test_the_demo_in_the_readme_is_the_one_that_was_measured() -> None:
    page = PAGES[ROOT / "README.md"]
    written = page.partition("<!-- demo -->\n")[2].partition("\n<!-- /demo -->")[0]
    stored = results("demo")
    measured = stored["evaluation"]
    for row in (measured["reference"], *measured["candidates"]):
        row["path"] = ""  # of the machine, left out of the file
    assert written == readme.demo_table(Evaluation.from_json(measured), stored["machine"])


@pytest.mark.parametrize(
    "mark", ["peers", "peer versions", "schemes beside peers", "methods", "ablation", "low rank"]
)
def test_the_tables_of_the_docs_are_those_of_the_result_files(mark: str) -> None:
    made = {
        "peers": readme.peers_table,
        "peer versions": readme.versions_table,
        "schemes beside peers": readme.schemes_beside_peers,
        "methods": readme.methods_table,
        "ablation": readme.ablation_table,
        "low rank": readme.low_rank_table,
    }[mark]()
    assert any(f"<!-- {mark} -->\n{made}\n<!-- /{mark} -->" in page for page in PAGES.values()), (
        "run: python -m tools.readme --recipes-only"
    )


MARKED = re.compile(r"<!-- ([\w ]+) -->.*?<!-- /\1 -->", re.DOTALL)
NO_PROSE = re.compile(r"^```.*?^```|`[^`]*`|\]\([^)]*\)|<[^>]*>", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"(?<![\w.,/-])(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:%| GiB)?(?!\w)(?!-\w)")


def figures(text: str) -> set[str]:
    """Figures of the prose; whole numbers of one digit alone (4 bits, 8 B) name things and measure none."""
    found = FIGURE.findall(NO_PROSE.sub(" ", MARKED.sub(" ", text)))
    return {figure.rstrip(",") for figure in found if not re.fullmatch(r"\d,?", figure)}


def speedups(layer: str) -> dict[int, float]:
    """Rows → the speed of a layer of 14336 × 4096 on the H200 over torch's in bf16, the faster of a call and a graph each."""
    rows = {row["name"]: row for row in results("nvidia-h200")["parts"]["timing"]["rows"]}

    def times(name: str) -> dict[int, float]:
        return {one["rows"]: min(one["ms"], one["graph_ms"]) for one in rows[f"{name} 14336x4096"]["table"]}

    own = times(layer)
    return {count: dense / own[count] for count, dense in times("bf16").items()}


def measured_figures() -> dict[str, str]:
    """What every figure of the README's prose is → how it is written, from the result files and the program itself."""
    fuzz, kills, zoo, demo = (results(name) for name in ("fuzz", "kills", "zoo", "demo"))
    sizes = {
        row["name"]: row["bytes_on_disk"]
        for row in (demo["evaluation"]["reference"], *demo["evaluation"]["candidates"])
    }
    w4, w8a8 = speedups("w4"), speedups("w8a8")
    assert f"{w8a8[1]:.1f}" == f"{w8a8[16]:.1f}"
    pages = PAGES[ROOT / "docs" / "models.md"]
    return {
        "python": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].strip(
            ">="
        ),
        "model classes": re.findall(r"Of (\d+) model types", pages)[0],
        "models that see": str(sum(name.startswith("vision-language/") for name in zoo)),
        "cases of the fuzzer": f"{fuzz['cases']:,}",
        "faults that it found": str(sum(fuzz["faults"].values())),
        "kills": str(kills["kills"]),
        "coverage of --strict": f"{ENOUGH:.0%}",
        "models opened by a process of their own": f"{LARGEST >> 30} GiB",
        "file of w4-gptq": f"{sizes['w4-gptq'] / sizes['embedded']:.0%}",
        "W4 at one row": f"{w4[1]:.2f}".lstrip("0"),
        "W4 at many rows": f"{w4[2048]:.2f}".lstrip("0"),
        "many rows": "2048",
        "the layer": "14336",
        "its inputs": "4096",
        "W8A8 at few rows": f"{w8a8[1]:.1f}",
        "few rows": "16",
    }


def test_every_figure_of_the_readme_is_in_a_result_file() -> None:
    assert figures(PAGES[ROOT / "README.md"]) == set(measured_figures().values())


def test_a_figure_that_nobody_measured_is_noticed() -> None:
    table = "<!-- demo -->\n3.25\n<!-- /demo -->\n"
    text = f"About .5, 12% and 1,234 of them in `x 99`, [4 bits](a/b77.md)\n{table}SmolLM2-135M 4 GiB"
    assert figures(text) == {".5", "12%", "1,234", "4 GiB"}


def test_the_counts_in_the_readme_are_those_of_the_result_files() -> None:
    text = " ".join(PAGES[ROOT / "README.md"].split())
    fuzz, kills, zoo = (results(name) for name in ("fuzz", "kills", "zoo"))
    seeing = sum(name.startswith("vision-language/") for name in zoo)
    said = {
        r"The fuzzer was run on ([\d,]+) cases": f"{fuzz['cases']:,}",
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
