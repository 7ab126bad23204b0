"""Mutations of what we have written ourselves: reports, finished and unfinished outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.fuzzing import checkpoints
from benchmarks.fuzzing.values import damaged, mutated, to_json
from benchmarks.fuzzing.world import WEIGHTS

Mutation = Callable[[Random, Path], str]


def report_value(random: Random, folder: Path) -> str:
    """One place of the report."""
    path = folder / "compress.json"
    path.write_text(to_json(mutated(random, json.loads(path.read_text()))))
    return "compress.json: one place changed"


def report_deep(random: Random, folder: Path) -> str:
    """One place of what the report says of the plan."""
    path = folder / "compress.json"
    data = json.loads(path.read_text())
    key = random.choice(list(data))
    data[key] = mutated(random, data[key])
    path.write_text(to_json(data))
    return f"compress.json: {key}"


def report_text(random: Random, folder: Path) -> str:
    """The report as bytes."""
    path = folder / "compress.json"
    path.write_bytes(damaged(random, path.read_bytes()))
    return "compress.json: damaged"


def page_link(random: Random, folder: Path) -> str:
    """A link to somebody's file where the page is to be written."""
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to(folder.parent / "text.jsonl")
    return "report.html: a link"


FINISHED: tuple[Mutation, ...] = (
    report_value,
    report_deep,
    report_deep,
    report_text,
    page_link,
    checkpoints.config_value,
    checkpoints.config_type,
    checkpoints.header_entry,
    checkpoints.weight_bytes,
    checkpoints.weights_cut,
    checkpoints.damaged_file,
    checkpoints.other_kind,
)


def journal_value(random: Random, folder: Path) -> str:
    """One place of a line of the journal."""
    path = folder / "journal.jsonl"
    lines = path.read_text().splitlines()
    number = random.randrange(len(lines))
    lines[number] = to_json(mutated(random, json.loads(lines[number])))
    path.write_text("\n".join(lines) + "\n")
    return f"journal.jsonl: line {number}"


def journal_text(random: Random, folder: Path) -> str:
    """The journal as bytes."""
    path = folder / "journal.jsonl"
    path.write_bytes(damaged(random, path.read_bytes()))
    return "journal.jsonl: damaged"


def shard_bytes(random: Random, folder: Path) -> str:
    """The weights that are there already."""
    path = folder / WEIGHTS
    path.write_bytes(damaged(random, path.read_bytes()))
    return f"{WEIGHTS}: damaged"


def stranger(random: Random, folder: Path) -> str:
    """A file or folder that is not ours, or is ours and gone."""
    name = random.choice(
        ("thesis.tex", ".compress-output", "journal.jsonl", "config.json", "x.safetensors", WEIGHTS)
    )
    path = folder / name
    path.unlink(missing_ok=True)
    kind = random.choice(("file", "folder", "link", "gone"))
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(folder.parent / "text.jsonl")
    return f"{name}: {kind}"


UNFINISHED: tuple[Mutation, ...] = (journal_value, journal_value, journal_text, shard_bytes, stranger)
