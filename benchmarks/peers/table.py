"""Side by side with other tools: ``python -m benchmarks.peers.table MODEL --calibration TEXT --heldout TEXT``.

Makes an environment of its own for each tool, gives all of them the same checkpoint, the same token windows, grid and
threads, measures each as a subprocess from outside, and evaluates every output with one evaluator (plain transformers,
fp32, the first 80 consecutive windows of 256 tokens of the held-out text). Prints the table and adds it to
``benchmarks/results/peers-<model>.json``.

Seconds: "proper" is from the moment everything is imported to the moment the checkpoint stands on disk (ours:
verified), "with start" is the whole process. Memory is the peak of anonymous memory beyond what the imports leave.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine_record, megabytes, table, write_results
from benchmarks.peers.environments import OURS, PEERS, python_of
from benchmarks.peers.jobs import Entry, Row, Setting, compare, our_entry

BARS = {"kl": 0.9, "seconds": 0.35, "memory": 0.5}
BAR_PEER = "llmcompressor-gptq"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--peers", default="llmcompressor", help=f"comma-separated, of {', '.join(PEERS)}")
    parser.add_argument(
        "--methods", default="", help="only these methods of the peers (default: those that fit)"
    )
    parser.add_argument("--ours", default="", help="our recipes (default: w4-rtn and the nearest w*-gptq)")
    parser.add_argument("--bits", type=int, default=4, help="0: prune only")
    parser.add_argument("--group", type=int, default=128)
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument("--symmetric", action="store_true", default=True)
    grid.add_argument("--asymmetric", dest="symmetric", action="store_false")
    parser.add_argument(
        "--scheme",
        default="",
        help="a preset of compressed-tensors in place of the integer grid, as NVFP4A16; give --ours the recipe",
    )
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--pattern", default="0:0", help="0:0 is unstructured, else N:M zeros as 2:4")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--batch", type=int, default=0, help="calibration batch of the peers (0: each one's default)"
    )
    parser.add_argument("--work", type=Path, default=Path("build/peers"))
    return parser.parse_args()


def entries_of(arguments: argparse.Namespace, setting: Setting) -> list[Entry]:
    """Our recipes first, then every asked-for method of every asked-for peer."""
    shipped = f"w{setting.bits}-gptq" if setting.bits in {2, 3, 4} else "w4-gptq"
    default = "w4-rtn," + shipped if setting.bits and not setting.sparsity else ""
    default = setting.scheme.lower() or default
    ours = [our_entry(recipe, setting) for recipe in (arguments.ours or default).split(",") if recipe]
    wanted = set(filter(None, arguments.methods.split(",")))
    fits = {"sparsegpt", "wanda"} if setting.sparsity else {"rtn", "gptq", "awq", "signround", "hqq", "nf4"}
    theirs = [
        Entry(PEERS[name], method, batch=arguments.batch or None, options=_scheme_options(name, setting))
        for name in arguments.peers.split(",")
        if name
        for method in sorted(PEERS[name].methods & fits)
        if not wanted or method in wanted
    ]
    return ours + theirs


def _scheme_options(tool: str, setting: Setting) -> dict[str, str]:
    """What a peer is told of a preset: only llm-compressor's runner takes one."""
    if setting.scheme and tool != "llmcompressor":
        raise SystemExit(f"--scheme goes with --peers llmcompressor, not {tool}")
    return {"scheme": setting.scheme} if setting.scheme else {}


def shown(rows: Sequence[Row]) -> str:
    """The table of figures."""
    headers = [
        "",
        "runs",
        "KL",
        "top-1",
        "perplexity",
        "s proper",
        "cpu s proper",
        "s with start",
        "MB beyond imports",
        "linears MB",
    ]
    cells: list[list[object]] = []
    for row in rows:
        if row.measured is None:
            cells.append([row.label, 0, *[None] * 8])
            continue
        run, figures = row.measured, row.figures
        cells.append(
            [
                row.label,
                row.runs,
                figures["kl"],
                figures["top1"],
                figures["perplexity"],
                run.proper,
                run.cpu_proper,
                run.seconds,
                megabytes(run.beyond_bytes),
                megabytes(figures["linear_bytes"]),
            ]
        )
    return table(headers, cells)


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each of our rows against each peer's: our figure as a multiple of theirs."""
    ours = [row for row in rows if row.tool == OURS.name and row.measured]
    theirs = [row for row in rows if row.tool != OURS.name and row.measured]
    found = []
    for mine in ours:
        for other in theirs:
            assert mine.measured is not None
            assert other.measured is not None
            found.append(
                {
                    "ours": mine.label,
                    "peer": other.label,
                    "kl": mine.figures["kl"] / other.figures["kl"],
                    "seconds": mine.measured.proper / other.measured.proper,
                    "cpu seconds": mine.measured.cpu_proper / other.measured.cpu_proper,
                    "memory": mine.measured.beyond_bytes / max(1, other.measured.beyond_bytes),
                    "bytes": mine.figures["linear_bytes"] / other.figures["linear_bytes"],
                }
            )
    return found


def bars(found: Sequence[dict[str, Any]]) -> str:
    """The bars against llm-compressor's GPTQ, met or not."""
    lines = []
    for row in found:
        if row["peer"] == BAR_PEER and "gptq" in row["ours"]:
            for name, bound in BARS.items():
                verdict = "met" if row[name] <= bound else "NOT MET"
                what = f"{row['ours']} against {row['peer']}: {name}"
                lines.append(f"{what} {row[name]:.3f} x (bar {bound} x): {verdict}")
    return "\n".join(lines)


def merge_results(model: str, label: str, payload: dict[str, Any]) -> None:
    """Put one setting's figures into the model's result file, beside those of other settings."""
    path = RESULTS / f"peers-{model}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["settings"] if path.exists() else {}
    write_results(
        f"peers-{model}", {"settings": {**before, label: {"machine": machine_record(()), **payload}}}
    )


def main() -> None:
    """Make the environments, run, print, record."""
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    work = arguments.work.resolve()
    setting = Setting(
        arguments.model.resolve(),
        str(arguments.calibration.resolve()),
        arguments.bits or None,
        arguments.group,
        arguments.symmetric,
        arguments.sparsity,
        arguments.pattern,
        arguments.samples,
        arguments.length,
        arguments.seed,
        arguments.threads,
        arguments.scheme,
    )
    entries = entries_of(arguments, setting)
    python_of(OURS, work, refresh=True)
    for entry in entries:
        python_of(entry.tool, work)
    rows = compare(entries, setting, arguments.heldout.resolve(), work, arguments.repeats)
    against = ratios(rows)
    print(
        f"\n{arguments.model.name}, {setting.label}, seed {setting.seed}, median of {arguments.repeats}; "
        f"evaluated on 80 windows of 256 tokens, fp32\n\n{shown(rows)}\n\nOurs as a multiple of theirs\n"
    )
    headers = ["ours", "peer", "KL", "seconds", "cpu seconds", "memory", "bytes"]
    print(table(headers, [list(row.values()) for row in against]))
    print("\n" + bars(against))
    merge_results(
        arguments.model.name,
        setting.label,
        {
            "repeats": arguments.repeats,
            "seed": setting.seed,
            "rows": [asdict(row) for row in rows],
            "ratios": against,
        },
    )


if __name__ == "__main__":
    main()
