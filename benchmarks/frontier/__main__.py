"""Quality against time: ``python -m benchmarks.frontier MODEL --calibration TEXT --heldout TEXT --cells NAMES``.

A cell is a shipped recipe, or another cell that ``compress heal`` trains further. Each runs as a command of its own on a fixed
number of threads; wall time, processor time and peak memory are the command's, a healed cell's with its base's. KL(dense ‖
compressed) by token with its standard error over windows, top-1 agreement and perplexity are measured on the first windows of
the held-out text in fp32. Cells are recorded by seed as they finish in ``benchmarks/results/frontier-<model>.json``; those that
are there are not run again. The table shows medians over seeds. ``--cells list`` names the cells.

On a GPU (``--device cuda``) the file is ``frontier-<model>-<device>.json``. ``--processes`` cells run at once, whose wall
times then are no measure of a cell alone; a cell that fails is told, and the others go on.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.frontier.bench import Bench, carry_out
from benchmarks.frontier.cells import CELLS
from benchmarks.frontier.tables import frontier_table


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a folder, or 'embedded'")
    parser.add_argument("--calibration", default="embedded", help="text file, or 'embedded'")
    parser.add_argument("--heldout", default="embedded", help="text file, or 'embedded'")
    parser.add_argument(
        "--cells", default="w3-gptq,w3-gptq + scales", help="comma-separated; 'list' names them"
    )
    parser.add_argument("--group", type=int, default=64, help="of the grids; 0 leaves the recipe's")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="of the calibration windows")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window-length", type=int, default=512)
    parser.add_argument("--tokens", default="250k", help="that healed cells are trained on")
    parser.add_argument("--heal-length", type=int, default=256)
    parser.add_argument("--heal-batch", type=int, default=8)
    parser.add_argument(
        "--heal-text", help="text file that healed cells are trained on, if not --calibration"
    )
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="cells that run at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="build/frontier")
    return parser.parse_args()


def main() -> None:
    """Run, print, record."""
    arguments = parse()
    if arguments.cells == "list":
        print("\n".join(CELLS))
        return
    arguments.cells = [name.strip() for name in arguments.cells.split(",")]
    if unknown := set(arguments.cells) - CELLS.keys():
        sys.exit(f"there is no cell {', '.join(sorted(unknown))}: --cells list names them")
    bench = Bench(arguments)
    bench.begin()
    carry_out(bench, bench.jobs(), arguments.processes)
    print(frontier_table(bench.runs))


if __name__ == "__main__":
    main()
