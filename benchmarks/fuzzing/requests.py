"""Mutations of what is asked for: recipes, settings, options, calibration text."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

from benchmarks.fuzzing.values import damaged, mutated, number, to_json, value
from benchmarks.fuzzing.world import World

_SETTINGS = (
    "quantize.bits",
    "quantize.group_size",
    "solver",
    "score",
    "targets",
    "calibrate.length",
    "calibrate.samples",
)
_SETTINGS += (
    "steps",
    "format",
    "transforms",
    "width_pruning.neurons",
    "depth_pruning.blocks",
    "lowrank.ratio",
    "prune.sparsity",
)
_SETTINGS += (
    "steps.0.solver.0.damping",
    "steps.9.x",
    "name",
    "",
    ".",
    "a.b.c",
    "quantize",
    "x" * 5000,
    "calibrate.data",
)
_SOLVERS = (
    "gptq",
    "awp",
    "sparsegpt",
    "wanda",
    "adaround",
    "signround",
    "hqq",
    "yaqa",
    "refit",
    "coordinate_descent",
    "oats",
)
_OPTIONS = (
    "damping",
    "steps",
    "act_order",
    "block",
    "iterations",
    "refine",
    "lr",
    "tokens",
    "clip_ratios",
    "rank",
    "bits",
)
_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_YAML = (
    _BOMB,
    "a: &a [*a]\n",
    "&a name: *a",
    "!!python/object/apply:os.system [true]",
    "[" * 20_000,
    "{a: " * 5_000,
    "- x",
    "name: x\nsteps: [{}]\n",
    "? {a: b}\n: c",
    "name: !!binary x",
    "name: 2001-01-01\nsteps: 3",
    "\0",
    "\ud800",
    "name: x\nsteps: [{solver: {name: gptq, damping: 1e400}}]",
)
_DEVICES = (
    "mps",
    "xpu",
    "meta",
    "cuda",
    "cuda:99",
    "cpu:7",
    "tpu",
    "",
    "x" * 3000,
    "cpu\0",
    "hpu",
    "privateuseone",
    "auto",
)
_PLACES = (
    "",
    ".",
    "..",
    "/",
    "/proc/x",
    "/dev/null",
    "model",
    "model/in",
    "x" * 300,
    "a/" * 600,
    "text.jsonl",
    "text.jsonl/x",
)


def recipe_value(random: Random, world: World) -> list[str]:
    """One place of the recipe."""
    data = mutated(random, yaml.safe_load(world.recipe.read_text()))
    world.recipe.write_text(to_json(data))
    return []


def recipe_text(random: Random, world: World) -> list[str]:
    """The recipe as text."""
    text = world.recipe.read_bytes()
    other = random.choice(_YAML).encode("utf-8", "surrogatepass")
    world.recipe.write_bytes(other if random.random() < 0.5 else damaged(random, text))
    return []


def solver_option(random: Random, world: World) -> list[str]:
    """An option of a solver with a value of a wrong type."""
    solver = {
        "name": random.choice(_SOLVERS),
        random.choice(_OPTIONS): value(random) if random.random() < 0.6 else number(random),
    }
    data = yaml.safe_load(world.recipe.read_text())
    data["steps"][0]["solver"] = [solver]
    if random.random() < 0.3:
        data["steps"][0] = {"prune": {"sparsity": 0.5}, "solver": [solver]}
    world.recipe.write_text(to_json(data))
    return []


def setting(random: Random, world: World) -> list[str]:
    """A ``--set``."""
    given = (
        to_json(value(random))
        if random.random() < 0.8
        else random.choice(("*a", "{", "[" * 3000, "!!x", "a: b: c"))
    )
    return ["--set", f"{random.choice(_SETTINGS)}={given[:3000]}"]


def option(random: Random, world: World) -> list[str]:
    """An option with an unlikely value."""
    name = random.choice(
        (
            "--samples",
            "--length",
            "--seed",
            "--dtype",
            "--format",
            "--data",
            "--bos",
            "--restart",
            "--overwrite",
        )
    )
    if name in ("--bos", "--restart", "--overwrite"):
        return [name]
    texts = (
        "",
        "x",
        "embedded",
        ".",
        "/dev/zero",
        "/dev/null",
        "none.txt",
        "a:b:c:d:e",
        "x" * 3000,
        "auto",
        "fp16",
        "native",
    )
    return [name, str(number(random)) if random.random() < 0.5 else random.choice(texts)]


def device(random: Random, world: World) -> list[str]:
    """A device that is not there."""
    return ["--device", random.choice(_DEVICES).replace("\0", "")]


def place(random: Random, world: World) -> list[str]:
    """An output that cannot be written."""
    return ["--out", random.choice(_PLACES)]


def text_value(random: Random, world: World) -> list[str]:
    """A record of the calibration text."""
    records: list[Any] = [json.loads(line) for line in world.text.read_text().splitlines()]
    kinds = (
        {"messages": [{"role": "user", "content": "hi " * 40}]},
        {"conversations": [{"from": "human", "value": "hi " * 40}]},
        {"input_ids": [5, 6, 7] * 20},
        {"instruction": "count " * 30, "output": "1 2"},
        [5] * 60,
    )
    template: Any = random.choice(kinds)
    records[random.randrange(len(records))] = mutated(random, template) if random.random() < 0.8 else template
    separator = random.choice(("\n", "\r\n", "\n\n"))
    world.text.write_text(separator.join(to_json(record) for record in records), encoding="utf-8", newline="")
    return []


def text_bytes(random: Random, world: World) -> list[str]:
    """The calibration text as bytes, under any name."""
    data = damaged(random, world.text.read_bytes())
    path = world.text.with_suffix(random.choice((".jsonl", ".json", ".txt", ".md", "")))
    path.write_bytes(data)
    return ["--data", str(path)]


REQUESTS: tuple[Callable[[Random, World], list[str]], ...] = (
    recipe_value,
    recipe_value,
    recipe_text,
    solver_option,
    solver_option,
    setting,
    setting,
    option,
    device,
    place,
    text_value,
    text_bytes,
)
"""Each changes files of a world and returns options to add to ``compress run``."""
