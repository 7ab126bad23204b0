"""One setting, many tools: the same checkpoint, windows, grid and threads for each, and one evaluator for all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Measured, RunFailed, fixed_threads, median_of, run_measured
from benchmarks.peers.environments import OURS, Tool, installed, python_of

SCRIPTS = Path(__file__).resolve().parent
RUNNERS = SCRIPTS / "runners"
DECODED = "-decoded"
"""As in ``runners/probe.py``: a tool whose format plain transformers does not load leaves a dense copy beside it."""
EVALUATED_WINDOWS = (80, 256)
PATIENCE_SECONDS = 100.0
"""A tool whose first run takes longer is run once."""


@dataclass(frozen=True)
class Setting:
    """What all tools are given.

    ``bits`` is None where weights are only pruned; ``sparsity`` is 0 where they are only rounded. ``scheme`` is a preset of
    compressed-tensors in the place of an integer grid (``NVFP4A16``).
    """

    model: Path
    calibration: str
    bits: int | None = 4
    group: int = 128
    symmetric: bool = True
    sparsity: float = 0.0
    pattern: str = "0:0"
    samples: int = 64
    length: int = 512
    seed: int = 0
    threads: int = 1
    scheme: str = ""

    @property
    def label(self) -> str:
        """Short name of the setting, unique among those of one model."""
        grid = (
            self.scheme.lower() or f"w{self.bits}-{'sym' if self.symmetric else 'asym'}-g{self.group}"
            if self.bits
            else ""
        )
        mask = (
            f"sparse{round(100 * self.sparsity)}"
            if self.pattern == "0:0"
            else self.pattern.replace(":", "of")
        )
        parts = [mask if self.sparsity else "", grid, f"{self.samples}x{self.length}", f"{self.threads}t"]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Entry:
    """One row of the table: a tool, what it is asked for, and what only this tool is told."""

    tool: Tool
    method: str
    batch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the row and of its folder."""
        name = self.options.get("label", self.method)
        return f"{self.tool.name}-{name}" + (f"-batch{self.batch}" if self.batch else "")


def our_entry(recipe: str, setting: Setting) -> Entry:
    """``compress run -r RECIPE`` with the grid of the setting put over the recipe's, if it has one."""
    over: dict[str, Any] = {}
    if setting.bits and re.search(r"(^|-)w\d", recipe):
        over = {
            "quantize.bits": setting.bits,
            "quantize.group_size": setting.group,
            "quantize.symmetric": str(setting.symmetric).lower(),
        }
    # No other program reads zeros packed: what is compared is a dense copy of the same values, as the peers write it.
    form = {"format": "dense"} if setting.sparsity else {}
    return Entry(OURS, method=recipe, options={"recipe": recipe, "set": over, **form})


def draw(setting: Setting, work: Path) -> Path:
    """The calibration windows of the setting in a file, drawn by our own corpus."""
    path = work / f"tokens-{setting.model.name}-{setting.samples}x{setting.length}-{setting.seed}.pt"
    command = [
        python_of(OURS, work),
        SCRIPTS / "draw.py",
        setting.model,
        setting.calibration,
        setting.samples,
        setting.length,
        setting.seed,
        path,
    ]
    subprocess.run([str(part) for part in command], check=True, env=fixed_threads(setting.threads))
    return path


def run_entry(
    entry: Entry, setting: Setting, work: Path, tokens: Path
) -> tuple[Measured, Path, dict[str, int]]:
    """Run one tool once; its output folder and the figures that its runner noted beside the marks.

    Raises ``RunFailed`` with the end of the tool's output when it fails.
    """
    folder = work / "runs" / setting.model.name / setting.label
    folder.mkdir(parents=True, exist_ok=True)
    out, job, events = (folder / f"{entry.label}{suffix}" for suffix in ("", ".job.json", ".events.jsonl"))
    decoded = Path(f"{out}{DECODED}")
    for stale in (out, decoded):
        shutil.rmtree(stale, ignore_errors=True)
    described = {
        "model": setting.model,
        "tokens": tokens,
        "text": setting.calibration,
        "out": out,
        "events": events,
        "method": entry.method,
        "bits": setting.bits,
        "group": setting.group,
        "symmetric": setting.symmetric,
        "sparsity": setting.sparsity,
        "pattern": setting.pattern,
        "threads": setting.threads,
        "batch": entry.batch or entry.tool.batch,
        "samples": setting.samples,
        "length": setting.length,
        "seed": setting.seed,
        "options": entry.options,
    }
    job.write_text(json.dumps(described, default=str, indent=1), encoding="utf-8")
    command = [str(python_of(entry.tool, work)), str(RUNNERS / entry.tool.runner), str(job)]
    measured = run_measured(command, environment=fixed_threads(setting.threads), events=events, cwd=folder)
    notes: dict[str, int] = {}
    for line in events.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        notes |= {} if "time" in row else row
    return measured, out, notes


def evaluate(
    reference: Path, checkpoints: Sequence[Path], text: Path, work: Path, threads: int
) -> dict[str, Any]:
    """Figures of each checkpoint (by its path) against the reference, by the one evaluator, in our environment."""
    job, out = work / "evaluate.job.json", work / "evaluate.json"
    windows, length = EVALUATED_WINDOWS
    described = {
        "reference": reference,
        "checkpoints": {str(path): _decoded(path) for path in checkpoints},
        "text": text,
        "windows": windows,
        "length": length,
        "threads": threads,
        "out": out,
    }
    job.write_text(json.dumps(described, default=str), encoding="utf-8")
    command = [str(python_of(OURS, work)), str(SCRIPTS / "evaluate.py"), str(job)]
    run_measured(command, environment=fixed_threads(threads))
    return dict(json.loads(out.read_text(encoding="utf-8")))


def _decoded(out: Path) -> Path:
    decoded = Path(f"{out}{DECODED}")
    return decoded if decoded.exists() else out


@dataclass(frozen=True)
class Row:
    """One row: the median of its runs; ``measured`` is None where the tool failed, and ``failure`` says how."""

    label: str
    tool: str
    method: str
    runs: int
    measured: Measured | None
    figures: Mapping[str, float]
    versions: Mapping[str, str]
    failure: str = ""


@dataclass
class Trials:
    """The runs of one entry so far."""

    entry: Entry
    runs: list[Measured] = field(default_factory=list)
    out: Path = Path()
    notes: dict[str, int] = field(default_factory=dict)
    failure: str = ""

    def again(self, setting: Setting, work: Path, tokens: Path) -> None:
        """Run once more, unless it failed or its first run was longer than ``PATIENCE_SECONDS``."""
        if self.failure or (self.runs and self.runs[0].proper > PATIENCE_SECONDS):
            return
        try:
            measured, self.out, self.notes = run_entry(self.entry, setting, work, tokens)
        except RunFailed as error:
            print(f"{self.entry.label}: FAILED\n{error}", flush=True)
            self.failure = str(error).strip().splitlines()[-1][:300]
            return
        self.runs.append(measured)
        print(
            f"{setting.label} {self.entry.label}: {measured.proper:.1f} s, cpu {measured.cpu_proper:.1f} s, "
            f"{measured.beyond_bytes / 1e6:.0f} MB",
            flush=True,
        )


def compare(entries: Sequence[Entry], setting: Setting, heldout: Path, work: Path, repeats: int) -> list[Row]:
    """Every entry ``repeats`` times, in turns so that a busy machine is equally busy for all, then evaluated once."""
    tokens = draw(setting, work)
    trials = [Trials(entry) for entry in entries]
    for _ in range(repeats):
        for each in trials:
            each.again(setting, work, tokens)
    done = [each.out for each in trials if not each.failure]
    figures = evaluate(setting.model, done, heldout, work, setting.threads)
    return [
        _row(each, figures, installed(each.entry.tool, python_of(each.entry.tool, work))) for each in trials
    ]


def _row(trials: Trials, figures: Mapping[str, Mapping[str, float]], versions: Mapping[str, str]) -> Row:
    entry = trials.entry
    if trials.failure:
        return Row(entry.label, entry.tool.name, entry.method, 0, None, {}, versions, trials.failure)
    found = {**figures[str(trials.out)], **trials.notes}
    runs = trials.runs
    return Row(entry.label, entry.tool.name, entry.method, len(runs), median_of(runs), found, versions)
