"""Processor seconds that an allocation takes, on made-up losses of models from 32 blocks to 128 blocks of 128 experts.

python -m benchmarks.allocation_speed --out results.json
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.allocate.choice_tree import Fork, Leaf, Node, Way, leaves
from compress.allocate.multiple_choice import Option
from compress.allocate.nested_choice import choose

WEIGHTS = {"q": 16, "k": 4, "v": 4, "o": 16, "gate": 56, "up": 56, "down": 56}
"""Millions of numbers."""


def leaf(name: str, millions: float, draw: random.Random, count: int = 14) -> Leaf:
    """A weight with ``count`` candidates from 2 to 16 bits, whose losses fall by four with each bit."""
    size, worst = millions * 125_000, draw.lognormvariate(0, 1) * millions
    options = []
    for index in range(count):
        bits = 2.1 + 6 * index / count
        loss = worst * 4 ** (2.1 - bits) * draw.uniform(0.8, 1.25)
        options.append(Option(int(size * bits), loss, size * (bits + 2) * 1e-11))
    options.append(Option(int(16 * size), 0.0, 18 * size * 1e-11))
    return Leaf(name, tuple(f"{name} {index}" for index in range(len(options))), tuple(options))


def dense(blocks: int, draw: random.Random, forks: bool) -> list[Node]:
    """Blocks of seven weights; with ``forks`` FFNs may be narrow in two ways, and a quarter of the blocks may go."""
    nodes: list[Node] = []
    for block in range(blocks):
        own: list[Node] = [leaf(f"{block}.{name}", size, draw) for name, size in WEIGHTS.items()]
        if forks:
            ffns = [
                tuple(leaf(f"{block}.{n}", WEIGHTS[n] * share, draw, count) for n in ("gate", "up", "down"))
                for share, count in ((1.0, 14), (0.875, 8), (0.75, 8))
            ]
            own = [*own[:4], Fork(tuple(Way(ffn, 0.1 * place) for place, ffn in enumerate(ffns)))]
        if forks and block % 4 == 0:
            nodes.append(Fork((Way(tuple(own)), Way(loss=50.0))))
        else:
            nodes += own
    return nodes


def experts(blocks: int, count: int, draw: random.Random) -> list[Node]:
    """Blocks of experts with three weights each, every one chosen for alone."""
    first = [leaf(f"{name}", 4, draw, 11) for name in range(64)]
    return [
        replace(draw.choice(first), name=f"{block}.{expert}.{weight}")
        for block in range(blocks)
        for expert in range(count)
        for weight in range(3)
    ]


def timed(nodes: list[Node], bits: float, limited: bool) -> dict[str, Any]:
    """Processor seconds of one allocation."""
    every = list(leaves(nodes))
    budget = int(sum(one.options[-1].nbytes for one in every) * bits / 16)
    budget = max(budget, int(1.05 * sum(node.smallest for node in nodes)))
    limit = None
    if limited:
        # Less than the least loss within the bytes takes, which is 5.5 of 18, and more than the fastest.
        limit = 0.28 * sum(node.options[-1].seconds for node in nodes if isinstance(node, Leaf))
    before = time.process_time()
    choose(nodes, budget, limit)
    return {"weights": len(every), "seconds": round(time.process_time() - before, 3)}


def main() -> None:
    """Time all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw = random.Random(0)
    cases = {
        "32 blocks": (dense(32, draw, forks=False), False),
        "32 blocks, narrow FFNs, blocks that go": (dense(32, draw, forks=True), False),
        "32 blocks, a limit of time": (dense(32, draw, forks=False), True),
        "128 blocks of 128 experts": (experts(128, 128, draw), False),
    }
    found = {name: timed(nodes, 3.5, limited) for name, (nodes, limited) in cases.items()}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
