"""One process of a part: ``python -m benchmarks.gpu.worker PART --request JSON --rows FILE --items 3 7 …``.

Appends a line of JSON for each item that is done. Ends with status 3 where the GPU was lost, so that another process goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.work import Request, attempt, is_sticky

LOST = 3


def main() -> int:
    """Carry out the items that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--request", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    items = PARTS[arguments.part].items(Request(**json.loads(arguments.request)))
    with arguments.rows.open("a", encoding="utf-8") as file:
        for number in arguments.items:
            row = {"item": number, "name": items[number].name, **attempt(items[number].run)}
            file.write(json.dumps(row) + "\n")
            file.flush()
            if is_sticky(row):
                return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
