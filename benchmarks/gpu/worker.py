"""One process of a part: ``python -m benchmarks.gpu.worker PART --request JSON --rows FILE --items 3 7 …``.

Appends a line of JSON for each item that is done, and before that lines marked ``unfinished`` for one that tells what it has
so far. Ends with status 3 where the GPU was lost, so that another process goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.work import Item, Request, attempt, is_sticky, wanted

LOST = 3


def _whole(item: Item, write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The row of an item, every state of it written."""
    made = item.run()
    if isinstance(made, dict):
        return made
    row: dict[str, Any] = {}
    for row in made:
        write({**row, "unfinished": True})
    return row


def main() -> int:
    """Carry out the items that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--request", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    request = Request(**json.loads(arguments.request))
    items = wanted(PARTS[arguments.part].items(request), request)
    with arguments.rows.open("a", encoding="utf-8") as file:
        for number in arguments.items:
            begun = {"item": number, "name": items[number].name}

            def write(part: dict[str, Any], begun: dict[str, Any] = begun) -> None:
                file.write(json.dumps({**begun, **part}) + "\n")
                file.flush()

            row = attempt(partial(_whole, items[number], write))
            write(row)
            if is_sticky(row):
                return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
