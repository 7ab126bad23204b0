"""Kill runs at random moments and go on with them: the output has to be that of an unbroken run, to the bit, and nothing else.

    python -m benchmarks.kills --kills 150 --save

Every run of a recipe is killed (SIGKILL) after a random time, started again by the same command, and so on until one comes to
its end. Then its weight files are held against those of a run that nobody killed, and its folder's neighbours are listed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from benchmarks.common import RESULTS

RECIPES = ("w4-gptq", "lowrank80-gfwsvd", "prune-width75-fisher", "sparse50-awp", "w4-awq")
"""With gradients: the second and the third."""

_RUN = "from compress_cli.main import app; app()"
COMMAND = (sys.executable, "-c", _RUN, "run", "embedded", "--samples", "8", "--length", "128", "--quiet")


@dataclass(frozen=True)
class Outcome:
    """What came of a recipe: how often it was killed, how often its output was finished and the same, what else was there."""

    recipe: str
    kills: int
    finished: int
    same: int
    left_behind: tuple[str, ...]


def kill_runs(recipe: str, kills: int, random: Random, home: Path) -> Outcome:
    """Kill runs of a recipe ``kills`` times in all."""
    whole = home / "whole"
    start = time.monotonic()
    subprocess.run([*COMMAND, "-r", recipe, "-o", str(whole), "--device", "cpu"], check=True)
    seconds = time.monotonic() - start
    expected = _hashes(whole)
    done = finished = same = 0
    left: set[str] = set()
    while done < kills:
        folder = home / f"run-{finished}"
        folder.mkdir()
        done += _until_finished(recipe, folder / "out", kills - done, seconds, random)
        finished += 1
        same += _hashes(folder / "out") == expected
        left |= {path.name for path in folder.iterdir()} - {"out"}
        left |= {path.name for path in (folder / "out").iterdir()} - {path.name for path in whole.iterdir()}
        shutil.rmtree(folder)
    shutil.rmtree(whole)
    return Outcome(recipe, done, finished, same, tuple(sorted(left)))


def _until_finished(recipe: str, out: Path, kills: int, seconds: float, random: Random) -> int:
    """Run and kill until a run ends well, at most ``kills`` times; how many kills there were."""
    done = 0
    while True:
        process = subprocess.Popen([*COMMAND, "-r", recipe, "-o", str(out), "--device", "cpu"])
        try:
            limit = random.uniform(0.1, 1.0) * seconds if done < kills else None
            if process.wait(timeout=limit):
                raise RuntimeError(f"{recipe} ended with status {process.returncode}")
            return done
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            if out.exists():  # killed after its last step: the same command would refuse a finished output
                return done


def _hashes(out: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.safetensors"))
    }


def main() -> int:
    """Kill all recipes in turn; the exit status is 0 if every output was the same and nothing was left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=150, help="over all recipes")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/kills.json")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    random, outcomes = Random(options.seed), []
    for recipe in options.recipes:
        home = Path(tempfile.mkdtemp(prefix="compress-kills-"))
        try:
            outcomes.append(kill_runs(recipe, -(-options.kills // len(options.recipes)), random, home))
        finally:
            shutil.rmtree(home, ignore_errors=True)
        print(json.dumps(asdict(outcomes[-1])), file=sys.stderr, flush=True)
    text = json.dumps({"seed": options.seed, "recipes": [asdict(outcome) for outcome in outcomes]}, indent=2)
    print(text)
    if options.save:
        (RESULTS / "kills.json").write_text(text + "\n", encoding="utf-8")
    return 0 if all(one.same == one.finished and not one.left_behind for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
