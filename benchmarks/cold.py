"""Cold storage: what packing takes off outputs of the embedded model, beside the entropy of their symbols.

``python -m benchmarks.cold [RECIPES…]`` writes ``benchmarks/results/cold-embedded.json``. Recipes without data take seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.common import write_results
from compress import compress, pack, unpack


def measure(recipe: str) -> dict[str, float]:
    """Compress, pack, unpack, and hold every file against the one that was packed."""
    with tempfile.TemporaryDirectory() as folder:
        out, cold, again = (Path(folder) / name for name in ("out", "cold", "again"))
        compress("embedded", recipe, out, device="cpu")
        times = [time.perf_counter()]
        made = pack(out, cold)
        times.append(time.perf_counter())
        unpack(cold, again)
        times.append(time.perf_counter())
        for path in out.iterdir():
            if path.read_bytes() != (again / path.name).read_bytes():
                raise SystemExit(f"{recipe}: {path.name} came back as another file")
        return {
            "bytes": made.before,
            "packed_bytes": made.after,
            "bound_bytes": round(made.bound, 1),
            "pack_seconds": round(times[1] - times[0], 2),
            "unpack_seconds": round(times[2] - times[1], 2),
        }


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["w4-rtn", "w8", "nf4"])
    found = {}
    for recipe in parser.parse_args().recipes:
        found[recipe] = measure(recipe)
        print(recipe, found[recipe], flush=True)
        write_results("cold-embedded", {"model": "embedded", "recipes": found})


if __name__ == "__main__":
    main()
