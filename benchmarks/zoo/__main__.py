"""`python -m benchmarks.zoo`: every model type through every recipe, one process each; results are kept and resumed."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import transformers

from benchmarks.common import RESULTS
from benchmarks.zoo.check import ENOUGH, RECIPES, PlainTransformers, check, warm
from benchmarks.zoo.configs import kinds, skipped
from benchmarks.zoo.plain import in_child
from benchmarks.zoo.vision_language import PREFIX, vision_language_kinds

SECONDS = 120
"""The time that one model type may take."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what has no result yet, keep every result at once, print the table."""
    options = _options(arguments)
    # Models are looked at, not kernels: nothing is compiled.
    os.environ |= {"COMPRESS_KERNELS_NATIVE": "0", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    kept: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    index, count = (int(part) for part in options.shard.split("/"))
    named = options.only or [*kinds(), *vision_language_kinds()]
    chosen = [kind for kind in named if _reason(kind) is None][index::count]
    warm()
    with PlainTransformers() as plain:
        for kind in chosen:
            done = {} if options.again else kept.get(kind, {}).get("recipes", {})
            wanted = [recipe for recipe in options.recipes if recipe not in done]
            if not wanted:
                continue
            start = time.perf_counter()
            found = in_child(lambda kind=kind, wanted=wanted: check(kind, wanted, plain), SECONDS)
            found["recipes"] = {**done, **found.get("recipes", {})}
            found |= {"transformers": transformers.__version__, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
            kept[kind] = found
            options.out.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
            print(f"{kind}: {_line(found)} ({time.perf_counter() - start:.1f} s)", flush=True)
    if not options.quiet:
        print(table(kept))


def table(results: Mapping[str, Any]) -> str:
    """What `docs/models.md` shows: the counts, then a row for each model type of the two mappings."""
    causal, towers = kinds(), vision_language_kinds()
    tried = [results[kind] for kind in (*causal, *towers) if kind in results and _reason(kind) is None]
    version = " and ".join(sorted({found["transformers"] for found in tried if "transformers" in found}))
    days = sorted({found["date"] for found in tried if "date" in found})
    return "\n".join(
        [
            summary(
                "model types of `AutoModelForCausalLM`", [results[kind] for kind in causal if kind in results]
            ),
            "",
            summary("vision-language models", [results[kind] for kind in towers if kind in results]),
            "",
            f"transformers {version}; run {' to '.join(dict.fromkeys((days[0], days[-1])))}." if days else "",
            "",
            *_rows("model type", causal, results),
            "",
            *_rows("vision-language model", towers, results),
        ]
    )


def summary(what: str, tried: Sequence[Mapping[str, Any]]) -> str:
    """How many models came out right, by recipe and in everything; how many a plan refuses."""
    counts = [
        f"{recipe} {sum(_cell(found.get('recipes', {}).get(recipe)) == 'yes' for found in tried)}"
        for recipe in RECIPES
    ]
    refused = sum(
        _cell(found.get("recipes", {}).get(recipe)) == "refused" for found in tried for recipe in RECIPES
    )
    return (
        f"Of {len(tried)} {what}, right: {', '.join(counts)}. Refused by the plan in a sentence: {refused}. "
        f"Every recipe right or refused, and at least {ENOUGH:.0%} compressed: {sum(map(is_fine, tried))}."
    )


def is_fine(found: Mapping[str, Any]) -> bool:
    """Whether every recipe came out right with enough compressed, or was refused by its plan; and the first came out right."""
    by_recipe = found.get("recipes", {})
    cells = {recipe: _cell(by_recipe.get(recipe)) for recipe in RECIPES}
    enough = all(
        cell == "refused" or (cell == "yes" and by_recipe[recipe]["coverage"] >= ENOUGH)
        for recipe, cell in cells.items()
    )
    return enough and cells[RECIPES[0]] == "yes"


def _rows(head: str, names: Sequence[str], results: Mapping[str, Any]) -> list[str]:
    lines = [
        f"| {head} | " + " | ".join(RECIPES) + " | compressed | format |",
        "|" + "---|" * (len(RECIPES) + 3),
    ]
    for kind in names:
        if (reason := _reason(kind)) is not None:
            lines.append(f"| {kind} |" + " |" * len(RECIPES) + f" | skipped: {reason} |")
        elif kind in results:
            by_recipe = results[kind].get("recipes", {})
            first = by_recipe.get(RECIPES[0], {})
            cells = [_cell(by_recipe.get(recipe)) for recipe in RECIPES]
            shares = [one["coverage"] for one in by_recipe.values() if "coverage" in one]
            shown = f"{min(shares):.0%}" if shares else ""
            shown_name = kind.removeprefix(PREFIX)
            lines.append(f"| {shown_name} | {' | '.join(cells)} | {shown} | {first.get('format', '')} |")
    return lines


def _reason(kind: str) -> str | None:
    """Why a model is left out, or None."""
    return None if kind.startswith(PREFIX) else skipped(kind)


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return "refused" if "refused" in found else "no" if "failed" in found else "yes"


def _line(found: Mapping[str, Any]) -> str:
    if "error" in found or "source" in found:
        return found.get("error") or f"source: {found['source']}"
    parts = []
    for recipe, one in found["recipes"].items():
        text = one.get("refused") or one.get("failed")
        parts.append(
            f"{recipe} {_cell(one)}" + (f" [{text}]" if text else f" {one['format']} {one['coverage']:.0%}")
        )
    return "; ".join(parts)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="model types; all unless given")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th model type, from the I-th")
    parser.add_argument("--out", type=Path, default=RESULTS / "zoo.json")
    parser.add_argument("--again", action="store_true", help="run what has a result, too")
    parser.add_argument("--quiet", action="store_true", help="no table at the end")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
