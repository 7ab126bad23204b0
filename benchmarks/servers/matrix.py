"""Every shipped recipe and format in every server that claims to read it.

``python -m benchmarks.servers.matrix --transformers PYTHON --vllm PYTHON … [--model NAME=FOLDER] [--recipes NAME …]`` runs each
recipe on the model (``embedded`` if none is named), writes the result in every format that holds it, opens each folder in the
servers whose interpreters are given, and compares perplexity, likeliest tokens and greedy text with those of ``compress.load``
in fp32 on the same token windows. The recipe ``dense`` is the model as it is: what a server's arithmetic alone changes. Rows go
to ``benchmarks/results/servers.json``: a row that is measured again replaces the one before, all others stay.

Calibration is kept small (``--samples``, ``--length``): what is measured is whether a server computes the same function, not
how good the recipe is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, write_results
from benchmarks.servers.programs import SERVERS, Questions, Server, ask
from benchmarks.servers.runners.torch_figures import torch_figures
from benchmarks.servers.table import COMPRESS_ALONE, matrix_table
from compress import Recipe, compress, export, load, plan
from compress.assets import EMBEDDED, embedded_model, embedded_text
from compress.errors import UserError
from compress.evaluation.size import folder_size, outside_bytes
from compress.evaluation.windows import read_documents, text_windows
from compress.pipeline.export import EXPORTED
from compress.recipe.recipe import shipped
from compress.text.tokenize import load_tokenizer, resolve_bos

RESULT = "servers"
KEY = ("model", "recipe", "format", "server")
NO_INTERPRETER = "no interpreter was given"
HEALED = 16384
"""Tokens that a recipe which heals is trained on: what is measured is the checkpoint's form."""
DENSE = "dense"
"""The name of the model as it is, among the recipes."""


@dataclass(frozen=True)
class Job:
    """One model, its questions, and where its checkpoints go."""

    name: str
    folder: Path
    questions: Questions
    work: Path
    calibration: dict[str, int]


def questions_of(folder: Path, text: Path, work: Path, windows: int, length: int) -> Questions:
    """The first windows of a held-out text, as the model's tokenizer cuts them."""
    tokenizer = load_tokenizer(folder)
    bos = resolve_bos(None, tokenizer)
    ids = text_windows(read_documents(text), tokenizer, length=length, limit=windows, bos=bos)
    path = work / "ids.npy"
    np.save(path, ids.numpy())
    return Questions(path)


def recipe_for(name: str, calibration: dict[str, int], format: str | None = None) -> Recipe:
    """A shipped recipe on little calibration text, and with little training where it trains."""
    settings: dict[str, Any] = {f"calibrate.{key}": value for key, value in calibration.items()}
    if Recipe.load(name).heal is not None:
        settings["heal.tokens"] = HEALED
    return Recipe.load(name, settings | ({"format": format} if format else {}))


def checkpoints(job: Job, name: str, formats: Sequence[str]) -> Iterator[tuple[str, Path | str]]:
    """The format of each checkpoint that a recipe leads to and its folder, or why there is none.

    Further formats are left out where they do not hold it.
    """
    out = job.work / name
    if name == DENSE:
        first, out = DENSE, job.folder
    elif (planned := unread(job, name, formats)) is not None:
        yield planned, COMPRESS_ALONE
        return
    else:
        try:
            made = compress(job.folder, recipe_for(name, job.calibration), out, overwrite=True)
        except UserError as error:
            yield "auto", str(error)
            return
        first = made.report.format.name
    yield first, out
    for format in wanted(first, formats):
        again = job.work / f"{name}-{format}"
        try:
            if format in EXPORTED:
                export(out, again, format=format, overwrite=True)
            else:
                compress(job.folder, recipe_for(name, job.calibration, format), again, overwrite=True)
        except UserError as error:
            print(f"{name} is not written as {format}: {error}", flush=True)
        else:
            yield format, again


def unread(job: Job, name: str, formats: Sequence[str]) -> str | None:
    """The format that a recipe's plan says it is written in, where no server reads that and none of ``formats`` is wanted."""
    try:
        format = plan(job.folder, recipe_for(name, job.calibration)).format
    except UserError:
        return None  # the run says why
    read = any(format in server.formats for server in SERVERS.values())
    return None if read or wanted(format, formats) else format


def wanted(first: str, formats: Sequence[str]) -> list[str]:
    """The formats besides a checkpoint's first: all where that is compressed-tensors', else GGUF and dense."""
    if first == "gguf":
        return []
    held = formats if first == "compressed-tensors" else [one for one in formats if one in ("gguf", "dense")]
    return [format for format in held if format != first]


def ours(folder: Path, questions: Questions) -> tuple[dict[str, Any], dict[str, int | None]]:
    """The same figures from ``compress.load`` in fp32; bytes of the weight files, and of embeddings and head in them."""
    model = load(folder, dtype=torch.float32, device="cpu").eval()
    size = folder_size(folder)
    sizes = {"bytes": size.files if size else None, "bytes_outside": outside_bytes(folder, model)}
    return torch_figures(model, np.load(questions.ids), questions.job([])), sizes


def compared(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How far a server's answer is from ours: shares of likeliest tokens, and of new tokens before the first other one."""
    same = np.array(mine["top1"]) == np.array(theirs["top1"])
    prefix = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x)) / len(x)
        for x, y in zip(mine["greedy"], theirs["greedy"], strict=True)
    ]
    return {
        "perplexity_ours": mine["perplexity"],
        "perplexity": theirs["perplexity"],
        "top1": float(same.mean()),
        "greedy": float(np.mean(prefix)),
    }


@dataclass(frozen=True)
class Made:
    """A checkpoint of a recipe in a format: its folder and what we compute with it, or why there is none."""

    recipe: str
    format: str
    folder: Path | None = None
    figures: dict[str, Any] | None = None
    refusal: str | None = None
    sizes: Mapping[str, int | None] = field(default_factory=dict)


def make(job: Job, name: str, formats: Sequence[str]) -> Iterator[Made]:
    """Every format of a recipe, with our figures where a server claims to read it."""
    for format, folder in checkpoints(job, name, formats):
        if isinstance(folder, str):
            yield Made(name, format, refusal=folder)
        elif any(format in server.formats for server in SERVERS.values()):
            figures, sizes = ours(folder, job.questions)
            yield Made(name, format, folder, figures, sizes=sizes)
        else:
            yield Made(name, format, refusal=COMPRESS_ALONE)


def refused(job: Job, made: Sequence[Made]) -> list[dict[str, Any]]:
    """A row for each checkpoint that there is not, or that no server reads."""
    return [
        {
            "model": job.name,
            "recipe": each.recipe,
            "format": each.format,
            "server": None,
            "not_run": each.refusal,
        }
        for each in made
        if each.refusal is not None
    ]


def served(
    job: Job, made: Sequence[Made], server: Server, interpreters: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """A row for each checkpoint that a server claims to read."""
    asked = [each for each in made if each.folder is not None and each.format in server.formats]
    heads: list[dict[str, Any]] = [
        {
            "model": job.name,
            "recipe": each.recipe,
            "format": each.format,
            "server": server.name,
            "dtype": server.dtype,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            **each.sizes,
        }
        for each in asked
    ]
    if not asked or server.name not in interpreters:
        return [{**head, "not_run": NO_INTERPRETER} for head in heads]
    folders = [each.folder for each in asked if each.folder is not None]
    answers = ask(server, interpreters[server.name], job.questions, folders, job.work)
    rows = []
    for each, head, answer in zip(asked, heads, answers, strict=True):
        found = {"error": answer["error"]} if "error" in answer else compared(each.figures or {}, answer)
        rows.append({**head, "version": answer["version"], **found})
    return rows


def merged(before: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows before with those of ``new`` in the place of theirs; what was measured stays where it was not run now."""
    held = {tuple(str(row[key]) for key in KEY): row for row in before}
    for row in new:
        key = tuple(str(row[key]) for key in KEY)
        if row.get("not_run") == NO_INTERPRETER and "not_run" not in held.get(key, row):
            continue
        held[key] = row
    return sorted(held.values(), key=lambda row: [str(row[key]) for key in KEY])


def record(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add rows to the result file; all rows that it holds now."""
    path = RESULTS / f"{RESULT}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    whole = merged(before, rows)
    write_results(RESULT, {"rows": whole})
    return whole


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in SERVERS:
        parser.add_argument(
            f"--{name}", type=Path, dest=name, metavar="PYTHON", help=f"interpreter with {name}"
        )
    parser.add_argument("--model", default=EMBEDDED, help="NAME=FOLDER; embedded if left out")
    parser.add_argument("--text", type=Path, help="held-out text; the shipped one if left out")
    parser.add_argument("--recipes", nargs="*", help="shipped recipes and dense; all if left out")
    parser.add_argument(
        "--formats", nargs="*", default=list(EXPORTED), help="besides each recipe's first choice"
    )
    parser.add_argument("--work", type=Path, default=Path("build/servers"))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8)
    return parser.parse_args()


def main() -> None:
    """Measure, record, print."""
    options = parsed()
    name, _, path = options.model.partition("=")
    folder = Path(path) if path else embedded_model()
    work = options.work / name
    work.mkdir(parents=True, exist_ok=True)
    text = options.text or Path(embedded_text("heldout"))
    questions = questions_of(folder, text, work, options.windows, options.length)
    calibration = {"samples": options.samples, "length": options.length}
    job = Job(name, folder, questions, work, calibration)
    interpreters = {each: getattr(options, each) for each in SERVERS if getattr(options, each)}
    made = [
        one for recipe in options.recipes or (DENSE, *shipped()) for one in make(job, recipe, options.formats)
    ]
    rows = record(refused(job, made))
    for server in SERVERS.values():
        rows = record(served(job, made, server, interpreters))
    print(matrix_table([row for row in rows if row["model"] == name]))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
