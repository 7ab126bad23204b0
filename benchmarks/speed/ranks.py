"""What a second process saves: wall time of one process of one thread against two, and how long each waits on the other.

``python -m benchmarks.speed.ranks [--model FOLDER] [--samples N] [--length N] [--tokens N] [--runs N] [--only NAME ...]`` runs
`compress run` (``w4-gptq``, ``best-w3``) and `compress heal`, each alone and as two ranks of ``torchrun``, in turn. The
times are those after the imports. ``waited`` is what a rank spent in receiving and in sums over ranks: mostly waiting, and on
one machine little of it the copy itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, fixed_threads, table, write_results

TIMES = "COMPRESS_RANK_TIMES"
"""The environment's name for the folder into which a timed rank writes."""
NAMES = ("w4-gptq", "best-w3", "heal")


@dataclass(frozen=True)
class RankTimes:
    """Seconds of one rank after its imports.

    Attributes:
        wall: until the command's end.
        cpu: of its processor.
        waited: in receiving and in sums over ranks.
        sent: in sending.
    """

    wall: float
    cpu: float
    waited: float
    sent: float


@dataclass(frozen=True)
class Compared:
    """One command alone and in two processes, in seconds of wall time.

    Attributes:
        alone, together: from the imports to the end of the first process.
        waits: by rank, the share of its wall time in which it waited on the other.
        busy: by rank, the share of its wall time in which it had a processor.
    """

    name: str
    alone: float
    together: float
    waits: tuple[float, ...]
    busy: tuple[float, ...]

    @property
    def efficiency(self) -> float:
        """Speedup by the number of processes."""
        return self.alone / self.together / len(self.waits)


def command_of(name: str, out: Path, compressed: Path, asked: argparse.Namespace) -> list[str]:
    """The words after ``compress``; ``compressed`` is a checkpoint for `heal`."""
    sizes = ["--device", "cpu", "--quiet"]
    if name == "heal":
        trained = ["--train", "norms,scales", "--rate", "0.02", "--tokens", str(asked.tokens)]
        lengths = ["--set", f"length={asked.length}", "--set", "holdout=4", "--set", "evaluations=2"]
        return ["heal", str(compressed), "--source", asked.model, *trained, *lengths, "-o", str(out), *sizes]
    # Columns that 128 does not divide are in groups of 64.
    groups = [] if asked.model == "embedded" else ["--set", "quantize.group_size=64"]
    windows = ["--samples", str(asked.samples), "--length", str(asked.length), "--no-fresh-process"]
    return ["run", asked.model, "-r", name, "-o", str(out), *windows, *groups, *sizes]


def timed(command: Sequence[str], ranks: int, folder: Path) -> list[RankTimes]:
    """The times of all ranks of a command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    folder.mkdir(parents=True)
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    )
    child = ["-m", "benchmarks.speed.ranks", "--child", *command]
    rooms = os.pathsep.join(str(REPOSITORY / part) for part in ("", "kernels", "cli"))
    environment = {**fixed_threads(1), TIMES: str(folder), "PYTHONPATH": rooms}
    subprocess.run(
        [sys.executable, *launcher, *child],
        env=environment,
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.PIPE,
    )
    return [RankTimes(**json.loads((folder / f"{rank}.json").read_text())) for rank in range(ranks)]


def compare(
    name: str, alone: Sequence[Sequence[RankTimes]], together: Sequence[Sequence[RankTimes]]
) -> Compared:
    """Medians over runs; of waiting and of processors in the run of median wall time."""
    first = sorted(together, key=lambda times: times[0].wall)[len(together) // 2]
    return Compared(
        name,
        statistics.median(times[0].wall for times in alone),
        first[0].wall,
        tuple(rank.waited / rank.wall for rank in first),
        tuple(rank.cpu / rank.wall for rank in first),
    )


def child(command: list[str]) -> None:
    """Run a command as this rank, and write its times where it ends."""
    import torch  # noqa: PLC0415
    from compress_cli.main import app  # noqa: PLC0415

    import compress.pipeline.carry_out  # noqa: PLC0415
    from compress.system.ranks import Ranks  # noqa: PLC0415

    assert torch
    assert compress
    spent = {"waited": 0.0, "sent": 0.0}
    for method, kind in (("receive", "waited"), ("add", "waited"), ("send", "sent")):
        setattr(Ranks, method, _counting(getattr(Ranks, method), spent, kind))
    sys.argv = ["compress", *command]
    began, before = time.monotonic(), _processor()
    try:
        app(command, prog_name="compress")
    finally:
        times = RankTimes(time.monotonic() - began, _processor() - before, **spent)
        path = Path(os.environ[TIMES]) / f"{os.environ.get('RANK', '0')}.json"
        path.write_text(json.dumps(asdict(times)))


def _counting(method: Callable[..., Any], spent: dict[str, float], kind: str) -> Callable[..., Any]:
    def counted(*args: Any) -> Any:
        began = time.monotonic()
        try:
            return method(*args)
        finally:
            spent[kind] += time.monotonic() - began

    return counted


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(name: str, asked: argparse.Namespace, work: Path) -> Compared:
    """A command alone and together, in turn."""
    times: dict[int, list[list[RankTimes]]] = {1: [], 2: []}
    model = work / "compressed"
    if name == "heal":
        timed(command_of("w4-rtn", model, model, asked), 1, work / "model-times")
    for run in range(asked.runs):
        for ranks in (1, 2):
            out = work / f"{name}-{ranks}-{run}"
            found = timed(command_of(name, out, model, asked), ranks, work / f"{name}-{ranks}-{run}-times")
            times[ranks].append(found)
            shutil.rmtree(out)
    return compare(name, times[1], times[2])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, and write it unless told not to."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--child"]:
        child(given[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=65536, help="of healing")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--no-write", action="store_true", help="print alone: the machine is not quiet")
    asked = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as work:
        rows = [measured(name, asked, Path(work)) for name in asked.only]
    columns = [
        "",
        "1 × 1, s",
        "2 × 1, s",
        "efficiency",
        "rank 0 waits",
        "rank 1 waits",
        "rank 0 busy",
        "rank 1 busy",
    ]
    lines = [[row.name, row.alone, row.together, row.efficiency, *row.waits, *row.busy] for row in rows]
    print(table(columns, lines))
    if not asked.no_write:
        facts = {
            "model": Path(asked.model).name,
            "samples": asked.samples,
            "length": asked.length,
            "tokens": asked.tokens,
            "runs": asked.runs,
        }
        write_results(f"scaling-ranks-{facts['model']}", {**facts, "columns": columns, "rows": lines})


if __name__ == "__main__":
    main()
