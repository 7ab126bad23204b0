"""One model type through every recipe: plan, compress, reload in plain transformers and with `compress.load`, compare."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import compress
from benchmarks.zoo.models import PROCESSOR, auto_class, write_model
from benchmarks.zoo.plain import logits
from compress.errors import UserError

RECIPES = ("w4-rtn", "w4-gptq", "sparse50-wanda", "nf4", "lowrank80-svdllm", "sparse50-awp")
"""Rounding, a solver with data, pruning, bitsandbytes' form, low rank, and one that takes gradients."""

TOLERANCE = {"compressed-tensors": 1e-2, "bitsandbytes": 5e-2, "dense": 2e-3}
"""By the forms that plain transformers opens, the greatest difference of logits in shares of the greatest logit at three
of four positions. transformers
decodes packed experts in bf16, and bitsandbytes multiplies in bf16, whatever the rest of the model computes in."""

OWN_DTYPE = 5e-2
"""The same where both compute in the checkpoint's own dtype, bf16."""

ENOUGH = 0.95
"""Share of the blocks' matrix parameters that has to be compressed."""

_TEXT = (
    "The quick brown fox jumps over the lazy dog.\ndef add(first, second):\n    return first + second\n" * 30
)
_OPTIONS: dict[str, Any] = {"samples": 2, "length": 32, "device": "cpu"}


class PlainTransformers:
    """The server of `benchmarks.zoo.plain` in a process of its own; use it as a context manager."""

    def __enter__(self) -> PlainTransformers:
        command = [sys.executable, "-m", "benchmarks.zoo.plain"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def open(self, folder: Path, file: Path, auto: str, dtype: str = "float32") -> dict[str, Any]:
        """As `benchmarks.zoo.plain.open_plain`; `{"error": …}` where it raised."""
        request = {"folder": str(folder), "file": str(file), "dtype": dtype, "auto": auto}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        for line in self._process.stdout:  # type: ignore[union-attr]
            answer: dict[str, Any] = json.loads(line)
            if answer.pop("folder") == str(
                folder
            ):  # else the answer to a process that was stopped while it waited
                return answer
        raise RuntimeError("the server of plain transformers has died")


def warm() -> None:
    """Plan one model, so that forked processes find modules imported and caches filled."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as place:
        write_model("mixtral", Path(place))
        compress.plan(place, RECIPES[0])


def check(kind: str, recipes: Sequence[str], plain: PlainTransformers) -> dict[str, Any]:
    """Everything about one model type: by recipe `ok`, or what went wrong; and the share that is compressed."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as place:
        folder = Path(place)
        source, text = folder / "source", folder / "text.txt"
        text.write_text(_TEXT)
        write_model(kind, source)
        before = plain.open(source, folder / "source.safetensors", auto_class(kind))
        if "error" in before:
            return {"source": before["error"]}
        result: dict[str, Any] = {"recipes": {}}
        for recipe in recipes:
            try:
                found = _one(source, folder / recipe, recipe, text, plain, auto_class(kind))
            except UserError as error:
                found = _refused(source, recipe, text, str(error))
            except Exception as error:
                place_of = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place_of.filename).name}:{place_of.lineno}"
                found = {"failed": f"{type(error).__name__} ({where}): {' '.join(str(error).split())[:300]}"}
            result["recipes"][recipe] = found
        return result


def _refused(source: Path, recipe: str, text: Path, said: str) -> dict[str, Any]:
    """A refusal, which a plan has to pronounce, too: to be refused later is a failure."""
    try:
        compress.plan(source, recipe, data=str(text), samples=_OPTIONS["samples"], length=_OPTIONS["length"])
    except UserError as error:
        return {"refused": str(error)}
    return {"failed": f"refused after its plan: {said}"}


def _one(
    source: Path, out: Path, recipe: str, text: Path, plain: PlainTransformers, auto: str
) -> dict[str, Any]:
    plan = compress.compress(source, recipe, out, data=str(text), **_OPTIONS).plan
    found: dict[str, Any] = {
        "format": plan.format,
        "format_reason": plan.format_reason,
        "coverage": plan.coverage.share,
    }
    if not all((out / name).is_file() for name in PROCESSOR if (source / name).is_file()):
        return {**found, "failed": "the files of the processor are missing"}
    ours = logits(compress.load(out, dtype=torch.float32, device="cpu"))
    if plan.format not in TOLERANCE:
        return found
    file, tolerance = out.with_suffix(".safetensors"), TOLERANCE[plan.format]
    opened = plain.open(out, file, auto)
    if "error" in opened:
        # Some code runs in the checkpoint's own dtype alone, as bitsandbytes' kernels may.
        ours, tolerance = logits(compress.load(out, device="cpu")), OWN_DTYPE
        opened = plain.open(out, file, auto, "auto")
    if "error" in opened:
        return {**found, "failed": f"plain transformers: {opened['error']}"}
    found |= opened
    theirs = load_file(file)["logits"]
    # A router that stands between two experts follows the last bit: a few positions may differ by an expert.
    by_position = (ours - theirs).abs().amax(-1).flatten() / ours.abs().max()
    found["difference"] = difference = float(by_position.quantile(0.75))
    if not difference <= tolerance:
        return {**found, "failed": f"plain transformers computes something else: {difference:.2g}"}
    return found
