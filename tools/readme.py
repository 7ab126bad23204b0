"""The tables of README.md and docs/: ``python -m tools.readme [--recipes-only]``.

Runs ``compress demo`` and writes its table, the table of the shipped recipes and the tables of ``benchmarks/results`` between
their marks. Draws ``docs/demo.svg`` (the terminal) and, where a Chromium is installed, ``docs/report.png`` (a run's report).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress_cli.demo import show
from compress_cli.recipes import scheme_rows, what_it_makes
from rich.console import Console

from benchmarks.common import REPOSITORY, RESULTS, machine_record, table
from benchmarks.frontier.tables import frontier_table
from benchmarks.peers.environments import PEERS, package_of
from benchmarks.peers.schemes import HEAD, scheme_cells
from benchmarks.quality import methods
from benchmarks.servers.gguf_bars import bars_table
from benchmarks.servers.gguf_models import models_table
from benchmarks.servers.gguf_tokenizers import tokenizer_table
from benchmarks.servers.gguf_types import types_table
from benchmarks.servers.served import write_served
from benchmarks.servers.table import matrix_table, served_by_table, under_the_tables
from compress import Recipe
from compress.evaluation import Evaluation
from compress.recipe.recipe import shipped
from compress.system import units as words

README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
WIDTH = 112
LOW_RANK = {
    "SVD": "SVD",
    "FWSVD": "FWSVD",
    "SVD-LLM": "SVD-LLM",
    "GFWSVD": "GFWSVD",
    "LOST": "LOST",
    "OATS": "OATS",
    "SVD-LLM, ranks by layer": "SVD-LLM, ranks by truncation",
    "GFWSVD, ranks by layer": "GFWSVD, ranks by Fisher",
    "the same, shared factors": "GFWSVD, ranks by Fisher, shared",
    "LOST by layer, shared factors": "LOST by Fisher, shared",
    "OATS by layer, shared factors": "OATS by Fisher, shared",
    "GFWSVD so, making up for the layers before (`lowrank80-gfwsvd`)": "GFWSVD, ranks by Fisher, shared, true input target",
    "LOST so (`lost80`)": "LOST by Fisher, shared, true input target",
    "OATS so (`oats80`)": "OATS by Fisher, shared, true input target",
}
"""What the README calls a method → its cell in the results."""
FONT = re.compile(r"\s*@font-face \{.*?\}\n", re.DOTALL)


def recipes_table() -> str:
    """Name, what it makes and when to use it, of every shipped recipe."""
    recipes = [Recipe.load(name) for name in shipped()]
    return table(
        ("recipe", "what it makes", "when to use it"),
        [(f"`{one.name}`", what_it_makes(one), one.when) for one in recipes],
    )


def schemes_table() -> str:
    """Name, recipe, contents and other names of every scheme."""
    rows = [
        (
            f"`{name}`",
            f"`{recipe}`",
            what,
            ", ".join(f"`{other}`" for other in filter(None, others.split(", "))),
        )
        for name, recipe, what, others in scheme_rows()
    ]
    return table(("scheme", "recipe", "what it writes", "also called"), rows)


def demo_table(evaluation: Evaluation, machine: Mapping[str, Any]) -> str:
    """The demo's figures, and how and where they were measured."""
    rows = [
        (
            "dense" if row is evaluation.reference else f"`{row.name}`",
            words.in_bytes(row.bytes_on_disk),
            words.in_bytes(row.outside_bytes),
            words.figure(row.bits_per_weight),
            words.figure(row.perplexity),
            words.divergence(row.kl),
            words.percent(row.top1),
        )
        for row in evaluation.rows
    ]
    where = f"{machine['cpu']}, {machine['day']}"
    head = ("", "bytes", "embeddings, head", "bits/weight", "perplexity", "KL to dense", "same top-1")
    return f"{table(head, rows)}\n\nMeasured at {evaluation.context} ({where}); KL in nats, mean over all tokens."


def low_rank_table() -> str:
    """KL of ways to spend the bytes of factors, by model and ratio, from what ``benchmarks.quality.low_rank`` has left."""
    found = {
        path.stem.removeprefix("lowrank-"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RESULTS.glob("lowrank-*.json"))
    }
    places = [(model, ratio) for model in found for ratio in ("80%", "60%")]
    rows = []
    for name, label in LOW_RANK.items():
        cells = [found[model]["cells"].get(f"{ratio} {label}") for model, ratio in places]
        rows.append(
            (name, *(cell and f"{cell['kl']:.2g}{'*' if cell['seeds'] == 1 else ''}" for cell in cells))
        )
    seeds = "; ".join(f"{model}: {', '.join(map(str, data['seeds']))}" for model, data in found.items())
    head = ("", *(f"{model}, {ratio}" for model, ratio in places))
    return f"{table(head, rows)}\n\nMedians over the seeds ({seeds}); * of seed 0 alone."


def methods_table() -> str:
    """KL and top-1 of methods by cell and model, as ``benchmarks.quality.methods`` left them, and its bars in numbers."""
    found = {
        path.stem.removeprefix("methods-"): methods.medians(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(RESULTS.glob("methods-*.json"))
    }
    rows = []
    for cell, (_, roads) in methods.CELLS.items():
        for method in roads:
            places = [cells.get((cell, method)) for cells in found.values()]
            if method not in methods.DRAWN or not any(places) or "ablation" in cell:
                continue
            bits = next(place["bits"] for place in places if place)
            figures = [
                None if place is None else f"{place['kl']:.4f} ({int(place['seeds'])})" for place in places
            ]
            rows.append((cell, method, f"{bits:.2f}", *figures))
    head = ("cell", "method", "bits/weight", *(f"KL, {model}" for model in found))
    return f"{table(head, rows)}\n\nIn brackets: of how many calibration seeds the figure is the median."


def ablation_table() -> str:
    """What each part of AWP is worth at half of the weights, from what ``benchmarks.quality.methods`` has left."""
    found = {
        path.stem.removeprefix("methods-"): methods.medians(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(RESULTS.glob("methods-*.json"))
    }
    rows = []
    for method in methods.ABLATION:
        places = [cells.get(("50% ablation", method)) for cells in found.values()]
        if any(places):
            rows.append((method, *(None if place is None else f"{place['kl']:.4f}" for place in places)))
    return table(("50%, one part after the other", *(f"KL, {model}" for model in found)), rows)


def peers_table() -> str:
    """Ours beside other tools, by setting, from what ``benchmarks.peers.table`` and ``scaling.py peers`` have left."""
    rows: list[tuple[object, ...]] = []
    for path in sorted(RESULTS.glob("peers-*.json"), key=lambda path: ("smollm2" not in path.stem, path)):
        for setting, run in json.loads(path.read_text(encoding="utf-8"))["settings"].items():
            model = path.stem.removeprefix("peers-")
            rows += [
                (
                    f"{model}, {setting}",
                    row["label"],
                    f"{row['figures']['kl']:.5f}",
                    f"{row['measured']['proper']:.0f}",
                    f"{row['measured']['beyond_bytes'] / 1e6:.0f}",
                    f"{row['figures']['bytes'] / 1e6:.1f}" if row["figures"].get("bytes") else None,
                )
                for row in run["rows"]
                if row["figures"]
            ]
    scaling = RESULTS / "scaling-peers.json"
    if scaling.exists():
        run = json.loads(scaling.read_text(encoding="utf-8"))
        setting = f"random, blocks of 109 MB, {run['samples']}x{run['length']}-{run['threads']}t"
        rows += [(setting, row[0], None, f"{row[5]:.0f}", f"{row[4]:.0f}", None) for row in run["rows"]]
    return table(("", "tool and method", "KL", "seconds", "MB beyond imports", "MB on disk"), rows)


def versions_table() -> str:
    """The tools that the benchmarks install, at which version, and what was measured of each."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("peers-*.json"))]
    rows = [row for run in runs for setting in run["settings"].values() for row in setting["rows"]]
    schemes = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("schemes-*.json"))
    ]
    methods_of: dict[str, list[str]] = {}
    for row in rows:
        if row["figures"]:
            methods_of.setdefault(row["tool"], []).append(row["method"])
    for row in (row for run in schemes for row in run["rows"]):
        methods_of.setdefault(row["tool"], []).append(f"{row['scheme']} {row['method']}")
    cells = []
    for tool in PEERS.values():
        version = tool.requirements[0].partition("==")[2]
        measured = ", ".join(dict.fromkeys(methods_of.get(tool.name, [])))
        cells.append((package_of(tool), version, measured or None))
    return table(("tool", "version", "measured here"), cells)


def schemes_beside_peers() -> str:
    """Small floats and rounded inputs beside other tools, by model, from what ``benchmarks.peers.schemes`` has left."""
    cells: list[tuple[object, ...]] = []
    for path in sorted(RESULTS.glob("schemes-*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        cells += [(run["model"], *row) for row in scheme_cells(run["rows"])]
    return table(("model", *HEAD), cells)


def put_servers() -> None:
    """What ``benchmarks.servers`` has left: servers by format and by recipe, and GGUF's models, tokenizers and bars."""
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["rows"]
        for path in (*RESULTS.glob("servers.json"), *sorted(RESULTS.glob("gguf-*.json")))
    }
    if rows := found.pop("servers", None):
        absent = under_the_tables(rows, shipped())
        put("served by", served_by_table(rows) + absent)
        put("servers", matrix_table(rows) + absent)
        write_served(rows)
    if rows := found.pop("gguf-models", None):
        put("gguf models", models_table(rows))
    if rows := found.pop("gguf-tokenizers", None):
        put("gguf tokenizers", tokenizer_table(rows))
    if rows := found.pop("gguf-types", None):
        put("gguf types", types_table(rows))
    for name, rows in found.items():
        put(name.replace("-", " ", 1), bars_table(rows))


def put(mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in the README or a page of docs/.

    Raises:
        ValueError: no page, or more than one, has the marks.
    """
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    pages = {page: page.read_text(encoding="utf-8") for page in (README, *sorted(DOCS.glob("*.md")))}
    marked = [page for page, before in pages.items() if pattern.search(before)]
    if len(marked) != 1:
        raise ValueError(f"{len(marked)} pages have a place marked {mark}, not one")
    after = pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", pages[marked[0]])
    marked[0].write_text(after, encoding="utf-8")


def draw_terminal(evaluation: Evaluation) -> None:
    """``docs/demo.svg``: the table as the terminal shows it."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print("[bold]$ make demo[/]")
    show(evaluation, console)
    # The fonts of the reader's machine: a picture in a repository fetches nothing.
    (DOCS / "demo.svg").write_text(FONT.sub("", console.export_svg(title="compress demo")), encoding="utf-8")


def draw_page(page: Path) -> None:
    """``docs/report.png``: the report as a browser shows it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium here: docs/report.png stays as it is", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as profile:
        flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --disable-background-networking"
        where = [
            f"--user-data-dir={profile}",
            f"--screenshot={DOCS / 'report.png'}",
            "--window-size=1180,1440",
        ]
        subprocess.run([browser, *flags.split(), *where, page.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes-only", action="store_true", help="leave the demo's figures as they are")
    arguments = parser.parse_args()
    put("recipes", recipes_table())
    put("schemes", schemes_table())
    if any(RESULTS.glob("lowrank-*.json")):
        put("low rank", low_rank_table())
    if any(RESULTS.glob("methods-*.json")):
        put("methods", methods_table())
        put("ablation", ablation_table())
    if any(RESULTS.glob("peers-*.json")):
        put("peers", peers_table())
        put("peer versions", versions_table())
    if any(RESULTS.glob("schemes-*.json")):
        put("schemes beside peers", schemes_beside_peers())
    for path in sorted(RESULTS.glob("frontier-*.json")):
        put(
            path.stem.replace("-", " ", 1),
            frontier_table(json.loads(path.read_text(encoding="utf-8"))["runs"]),
        )
    put_servers()
    if arguments.recipes_only:
        return
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        command = [
            sys.executable,
            "-c",
            "from compress_cli.main import app; app()",
            "demo",
            "--out",
            str(out),
        ]
        subprocess.run(command, check=True)
        evaluation = Evaluation.read(out / "evaluation.json")
        machine = machine_record()
        figures = evaluation.to_json()
        for row in (figures["reference"], *figures["candidates"]):
            del row["path"]  # of this machine
        stored = {"machine": machine, "evaluation": figures}
        (RESULTS / "demo.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        put("demo", demo_table(evaluation, machine))
        draw_terminal(evaluation)
        draw_page(out / "report.html")


if __name__ == "__main__":
    main()
