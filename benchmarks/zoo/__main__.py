"""`python -m benchmarks.zoo`: every model type through every recipe, one process each; results are kept and resumed."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from benchmarks.common import RESULTS
from benchmarks.zoo.check import ENOUGH, RECIPES, PlainTransformers, check, warm
from benchmarks.zoo.configs import kinds, skipped
from benchmarks.zoo.plain import in_child

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
    chosen = [kind for kind in (options.only or kinds()) if skipped(kind) is None][index::count]
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
            kept[kind] = found
            options.out.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
            print(f"{kind}: {_line(found)} ({time.perf_counter() - start:.1f} s)", flush=True)
    if not options.quiet:
        print(table(kept))


def table(results: Mapping[str, Any]) -> str:
    """The table of `docs/models.md`: a row for each model type."""
    lines = [
        "| model type | " + " | ".join(RECIPES) + " | compressed | format |",
        "|" + "---|" * (len(RECIPES) + 3),
    ]
    for kind in kinds():
        if (reason := skipped(kind)) is not None:
            lines.append(f"| {kind} |" + " |" * len(RECIPES) + f" | skipped: {reason} |")
        elif kind in results:
            by_recipe = results[kind].get("recipes", {})
            first = by_recipe.get(RECIPES[0], {})
            cells = [_cell(by_recipe.get(recipe)) for recipe in RECIPES]
            share = first.get("coverage")
            shown = "" if share is None else f"{share:.0%}"
            lines.append(f"| {kind} | {' | '.join(cells)} | {shown} | {first.get('format', '')} |")
    return "\n".join([*lines, "", summary(results)])


def summary(results: Mapping[str, Any]) -> str:
    """How many model types are fine, by recipe and in everything."""
    tried = [found for kind, found in results.items() if skipped(kind) is None]
    counts = [
        f"{recipe} {sum(_cell(found.get('recipes', {}).get(recipe)) == 'yes' for found in tried)}"
        for recipe in RECIPES
    ]
    return f"Of {len(tried)} model types: {', '.join(counts)}; all recipes {sum(map(is_fine, tried))}."


def is_fine(found: Mapping[str, Any]) -> bool:
    """Whether every recipe went through, with enough compressed."""
    by_recipe = found.get("recipes", {})
    return all(
        _cell(by_recipe.get(recipe)) == "yes" and by_recipe[recipe]["coverage"] >= ENOUGH
        for recipe in RECIPES
    )


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
