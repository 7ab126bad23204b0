"""Kill runs at random moments and resume them: the output has to be that of an unbroken run, to the bit, and nothing else.

    python -m benchmarks.kills --kills 150 --save
    python -m benchmarks.kills --kills 150 --save --resume    # go on with what benchmarks/results/kills.json holds

A run is killed (SIGKILL) after a random time and started again by the same command until it ends well. Then its weight
files are compared with those of a run that nobody killed, and its folder and its temporary folder are listed.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

from benchmarks.common import RESULTS, machine_record

RECIPES = ("w4-gptq", "lowrank80-gfwsvd", "prune-width75-fisher", "w4-awq", "sparse50-awp")
"""With gradients: all but the first and the fourth."""
SETTINGS = {
    "w2-heal": ("--set", "heal.tokens=8k", "--set", "heal.length=128", "--set", "heal.evaluations=4"),
}
"""Of recipes that are not run as they are; they are named by ``--recipes``."""
FILE = RESULTS / "kills.json"
COMMAND = (
    *(sys.executable, "-m", "compress_cli", "run", "embedded"),
    *("--samples", "8", "--length", "128", "--no-fresh-process"),
)


@dataclass(frozen=True)
class Outcome:
    """The result for a recipe.

    Attributes:
        recipe: its name.
        kills: how many processes were killed.
        finished: how many runs came to their end, each after some kills.
        same: how many of those wrote the weight files of the unbroken run, to the bit.
        left_behind: files that the unbroken run does not leave.
        failures: what a resumed run said that did not end well.
    """

    recipe: str
    kills: int = 0
    finished: int = 0
    same: int = 0
    left_behind: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        return self.same == self.finished and not self.left_behind and not self.failures


def kill_runs(
    before: Outcome, kills: int, seed: int, home: Path, on_progress: Callable[[Outcome], None]
) -> Outcome:
    """Kill runs of a recipe until there were ``kills`` in all, those of ``before`` included."""
    outcome, unbroken = before, home / "unbroken"
    unbroken.mkdir()
    start = time.monotonic()
    _start(outcome.recipe, unbroken).communicate()
    seconds = time.monotonic() - start
    expected = _hashes(unbroken / "out")
    if not expected:
        raise RuntimeError(f"{outcome.recipe}: the unbroken run failed")
    while outcome.kills < kills:
        folder = home / "killed"
        folder.mkdir()
        random = Random(f"{seed}/{outcome.recipe}/{outcome.finished + len(outcome.failures)}")
        count, failure = _until_finished(outcome.recipe, folder, kills - outcome.kills, seconds, random)
        outcome = replace(outcome, kills=outcome.kills + count)
        if failure:
            outcome = replace(outcome, failures=(*outcome.failures, failure))
        else:
            left = {*outcome.left_behind, *_left_behind(folder, home / "unbroken")}
            same = outcome.same + (_hashes(folder / "out") == expected)
            outcome = replace(
                outcome, finished=outcome.finished + 1, same=same, left_behind=tuple(sorted(left))
            )
        shutil.rmtree(folder)
        on_progress(outcome)
    return outcome


def _start(recipe: str, folder: Path) -> subprocess.Popen[str]:
    """Start a run into ``folder/out`` whose temporary files go to ``folder/tmp``."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    command = [*COMMAND, "--quiet", "--device", "cpu", "-r", recipe, "-o", str(folder / "out")]
    command += SETTINGS.get(recipe, ())
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def _until_finished(recipe: str, folder: Path, kills: int, seconds: float, random: Random) -> tuple[int, str]:
    """Run and kill until a run ends, at most ``kills`` times.

    Returns:
        The number of kills, and what the last run said if it ended with an error.
    """
    out, done = folder / "out", 0
    while True:
        process = _start(recipe, folder)
        limit = random.uniform(0.05, 1.0) * seconds if done < kills else None
        try:
            _, said = process.communicate(timeout=limit)
            return done, f"status {process.returncode}: {said[-500:]}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
            if out.exists():  # killed after its last step: the same command would refuse a finished output
                return done, ""


def _left_behind(folder: Path, unbroken: Path) -> set[str]:
    """Names in the folder of a killed run, in its output and in its temporary folder that an unbroken run does not leave."""
    return _names(folder) - _names(unbroken)


def _names(folder: Path) -> set[str]:
    places = (folder, folder / "out", folder / "tmp")
    return {str(path.relative_to(folder)) for place in places for path in place.iterdir()}


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
    parser.add_argument(
        "--save", action="store_true", help=f"write {RESULTS.name}/{FILE.name} after every run"
    )
    parser.add_argument("--resume", action="store_true", help=f"count what {RESULTS.name}/{FILE.name} holds")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    outcomes = {recipe: Outcome(recipe) for recipe in options.recipes}
    if options.resume and FILE.exists():
        outcomes |= {row["recipe"]: _outcome(row) for row in json.loads(FILE.read_text())["recipes"]}

    def on_progress(outcome: Outcome) -> None:
        outcomes[outcome.recipe] = outcome
        print(json.dumps(asdict(outcome)), file=sys.stderr, flush=True)
        if options.save:
            FILE.write_text(_text(options.seed, outcomes), encoding="utf-8")

    for recipe in options.recipes:
        kills = -(-options.kills // len(options.recipes))
        if outcomes[recipe].kills >= kills:
            continue
        home = Path(tempfile.mkdtemp(prefix="compress-kills-"))
        try:
            kill_runs(outcomes[recipe], kills, options.seed, home, on_progress)
        finally:
            shutil.rmtree(home, ignore_errors=True)
    print(_text(options.seed, outcomes), end="")
    return 0 if all(outcome.right for outcome in outcomes.values()) else 1


def _outcome(row: dict[str, object]) -> Outcome:
    """An outcome of its plain data."""
    lists = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
    return Outcome(**{**row, **lists})  # type: ignore[arg-type]


def _text(seed: int, outcomes: dict[str, Outcome]) -> str:
    rows = [asdict(outcome) for outcome in outcomes.values()]
    kills = sum(outcome.kills for outcome in outcomes.values())
    return (
        json.dumps({"machine": machine_record(), "seed": seed, "kills": kills, "recipes": rows}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
