"""One case from its seed to its verdict: mutate a copy of the world, run one command in a child, look at what it did."""

from __future__ import annotations

import hashlib
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import typer
from compress_cli.main import app

from benchmarks.fuzzing.checkpoints import MUTATIONS
from benchmarks.fuzzing.outputs import FINISHED, UNFINISHED
from benchmarks.fuzzing.requests import REQUESTS
from benchmarks.fuzzing.world import World

CPU_SECONDS = 10
"""Of processor time: the wall is no measure on a busy machine."""
IDLE_SECONDS = 60
"""In which no thread of a command runs or waits for a processor: on a busy machine a command takes its time."""
POLL_SECONDS = 0.5
LONGEST = 3000
"""Characters that a command may print on stderr, notes and the usage of an option included."""
USER_ERROR = 2


@dataclass(frozen=True)
class Case:
    """What is run, on files that were mutated already.

    Attributes:
        arguments: of the command line.
        story: what was mutated, in words.
        outputs: names in the world's folder that may come to be or change.
        refused: whether only a refusal is right.
    """

    arguments: list[str]
    story: str
    outputs: tuple[str, ...]
    refused: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of a case; ``fault`` is empty where all is well."""

    seed: int
    story: str
    arguments: list[str]
    status: int
    seconds: float
    fault: str
    said: str


def run_case(world: World, seed: int, scratch: Path, *, quick: bool = False) -> Verdict:
    """Run the case of a seed in a folder of its own, which is deleted afterwards; ``quick`` ones mostly plan and look."""
    random = Random(seed)
    home = Path(tempfile.mkdtemp(prefix="case-", dir=scratch))
    try:
        copy = world.copy_to(home / "world")
        case = _choose(random)(random, copy, quick)
        # Also for the files of tracebacks: a command leaves nothing in the folder for temporary files.
        (home / "tmp").mkdir()
        before = _contents(home, case)
        status, seconds, said = _run(case, home)
        fault = _fault(case, home, before, status, said)
        traces = "".join(path.read_text(errors="replace")[-1500:] for path in (home / "tmp").glob("*.txt"))
        return Verdict(seed, case.story, case.arguments, status, seconds, fault, said[-2000:] + traces)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _choose(random: Random) -> Callable[[Random, World, bool], Case]:
    return random.choices((_source, _request, _finished, _unfinished), (40, 30, 20, 10))[0]


def _source(random: Random, world: World, quick: bool) -> Case:
    story = random.choice(MUTATIONS)(random, world.model)
    if random.random() < 0.25 and not story.endswith(": pipe"):
        # The first may have left nothing that the second could read.
        with suppress(
            ValueError, OSError, AttributeError, TypeError, KeyError, IndexError, RecursionError, struct.error
        ):
            story += "; " + random.choice(MUTATIONS)(random, world.model)
    model, recipe = str(world.model), random.choice(("w4-rtn", str(world.recipe), "w8", "nf4"))
    commands = {
        "run": [
            "run",
            model,
            "-r",
            recipe,
            "-o",
            "new",
            "--data",
            str(world.text),
            "--set",
            "quantize.group_size=32",
        ],
        "plan": ["plan", model, "-r", recipe, "--set", "quantize.group_size=32"],
        "inspect": ["inspect", model],
        "verify": ["verify", str(world.out), "--source", model],
        "generate": ["generate", model, "hi", "--max-new-tokens", "2", "--device", "cpu"],
        "eval": ["eval", model, "--text", str(world.text), "--limit", "1", "--no-speed", "--length", "16"],
    }
    name = random.choices(list(commands), (5, 45, 30, 5, 5, 10) if quick else (50, 20, 10, 5, 10, 10))[0]
    return Case(commands[name], story, ("new",))


def _request(random: Random, world: World, quick: bool) -> Case:
    change = random.choice(REQUESTS)
    arguments = ["run", str(world.model), "-r", str(world.recipe), "-o", "new", "--data", str(world.text)]
    more = change(random, world)
    if change.__name__ in ("recipe_value", "recipe_text", "solver_option", "setting") and random.random() < (
        0.9 if quick else 0.3
    ):
        arguments = ["plan", str(world.model), "-r", str(world.recipe)]
    # "a" is the first of many folders in one of the places.
    return Case([*arguments, *more], change.__doc__ or "", ("new", "a"))


def _finished(random: Random, world: World, quick: bool) -> Case:
    change = random.choice(FINISHED)
    story = change(random, world.out)
    commands = (
        ["verify", str(world.out), "--source", str(world.model)],
        ["verify", str(world.out), "--source", str(world.model)],
        ["report", str(world.out)],
        ["inspect", str(world.out)],
        ["generate", str(world.out), "hi", "--max-new-tokens", "2", "--device", "cpu"],
        [
            "eval",
            str(world.model),
            str(world.out),
            "--text",
            str(world.text),
            "--limit",
            "1",
            "--no-speed",
            "--length",
            "16",
        ],
    )
    arguments = random.choice(commands)
    spoilt = change.__name__ in ("weights_cut", "config_type") and arguments[0] == "verify"
    written = {"report": ("out/report.html",), "eval": ("out/holdout.json",)}.get(arguments[0], ())
    return Case(arguments, story, written, refused=spoilt)


def _unfinished(random: Random, world: World, quick: bool) -> Case:
    story = random.choice(UNFINISHED)(random, world.partial)
    arguments = ["run", str(world.model), "-r", str(world.recipe), "-o", "half", "--data", str(world.text)]
    return Case(arguments + random.choice(([], ["--restart"])), story, ("half", "half.partial"))


def _run(case: Case, home: Path) -> tuple[int, float, str]:
    """Run a command in a child of this process; its exit status, or minus the signal that ended it, and stderr."""
    errors = home / "stderr"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(case, home, errors)
    status = _wait(child)
    said = errors.read_text(encoding="utf-8", errors="replace") if errors.exists() else ""
    return status, time.monotonic() - start, said


def _wait(child: int) -> int:
    """Wait for a process; it is killed, which counts as SIGALRM, when it has been idle for too long."""
    idle = 0.0
    watched = select.poll()
    descriptor = os.pidfd_open(child)
    watched.register(descriptor, select.POLLIN)
    try:
        while not watched.poll(POLL_SECONDS * 1000):
            idle = 0.0 if _is_runnable(child) else idle + POLL_SECONDS
            if idle >= IDLE_SECONDS:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return -signal.SIGALRM
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(descriptor)


def _is_runnable(child: int) -> bool:
    """Whether a thread of a process or of its children runs, or waits for a processor or a disk."""
    for tasks in (Path(f"/proc/{pid}/task") for pid in (child, *_children(child))):
        with suppress(OSError):
            for task in tasks.iterdir():
                if (task / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                    return True
    return False


def _children(process: int) -> list[int]:
    """The processes that a process and its children have started."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_children(child)]
    return found


@cache
def command_line() -> Any:
    """The commands of ``compress`` as one object, which takes typer a tenth of a case to build."""
    return typer.main.get_command(app)


def _child(case: Case, home: Path, errors: Path) -> None:
    """Never returns: the command line in this process, with its streams in files and its processor time limited."""
    with suppress(BaseException):
        os.setpgid(0, 0)
        os.chdir(home / "world")
        os.environ["TMPDIR"] = tempfile.tempdir = str(home / "tmp")
        for stream, path in ((0, os.devnull), (1, os.devnull), (2, str(errors))):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
        used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS + 1))
        # Another process that imports torch would take most of the time.
        alone = ["--no-fresh-process"] if case.arguments[0] in ("run", "verify") else []
        sys.argv = ["compress", *case.arguments, *alone]
        status = 0
        try:
            command_line()(prog_name="compress")
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    os._exit(99)


def _fault(case: Case, home: Path, before: dict[str, str], status: int, said: str) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL):
        return "hang"
    if status not in (0, USER_ERROR):
        return f"status {status}"
    if status == 0 and case.refused:
        return "silent"
    if "Traceback" in said or len(said) > LONGEST:
        return "long"
    if status == USER_ERROR and not said.strip():
        return "nothing said"
    after = _contents(home, case)
    if changed := sorted(key for key in {**before, **after} if before.get(key) != after.get(key)):
        return f"changed {changed[:3]}"
    return ""


def _contents(home: Path, case: Case) -> dict[str, str]:
    """Path → kind and hash of everything but what the command may write."""
    result = {}
    allowed = [home / "world" / name for name in case.outputs]
    for path in sorted(home.rglob("*")):
        if path == home / "stderr" or any(_belongs(path, place) for place in allowed):
            continue
        if path.is_symlink():
            result[str(path)] = f"link {os.readlink(path)}"
        elif path.is_file():
            result[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            result[str(path)] = "folder" if path.is_dir() else "other"
    return result


def _belongs(path: Path, place: Path) -> bool:
    """Whether a path is an output, in it, or beside it as an unfinished one is."""
    if path == place or place in path.parents:
        return True
    beside = [place.with_name(f"{place.name}.partial{end}") for end in ("", ".width", ".sensitivity")]
    return any(path == one or one in path.parents for one in beside)
