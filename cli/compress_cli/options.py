"""The arguments and options that several commands share, and how their text is read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from compress.assets import EMBEDDED, embedded_model
from compress.checkpoint.names import check_exists, check_folder
from compress.errors import UserError
from compress.recipe.recipe import Recipe, find_recipe, shipped
from compress.recipe.schemes import SCHEMES
from compress.text.check import check_text, check_text_file


class Dtype(StrEnum):
    """The dtypes that `--dtype` takes."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Format(StrEnum):
    """The formats that `--format` takes."""

    auto = "auto"
    compressed_tensors = "compressed-tensors"
    bitsandbytes = "bitsandbytes"
    gguf = "gguf"
    gptq = "gptq"
    awq = "awq"
    mlx = "mlx"
    fp8 = "fp8"
    modelopt = "modelopt"
    native = "native"
    dense = "dense"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return list(shipped())


def scheme_names() -> list[str]:
    """Return the names of the schemes, in the order of their table."""
    return [scheme.name for scheme in SCHEMES]


def recipe_of(recipe: str | None, scheme: str | None, changes: Mapping[str, Any]) -> str:
    """Return the recipe that `--recipe` or `--scheme` names, read once so that a mistake in it ends before torch is imported.

    Args:
        recipe: what `--recipe` says.
        scheme: what `--scheme` says.
        changes: what `--set` says.

    Raises:
        UserError: both or neither are given, the recipe or the scheme is not known, or a key or value in it is wrong.
    """
    if (recipe is None) == (scheme is None):
        raise UserError("Give either a recipe (-r w4-gptq) or a scheme (--scheme W4A16).")
    if scheme is not None:
        find_recipe(scheme, files=False)
    name = str(recipe if scheme is None else scheme)
    Recipe.load(name, changes)
    return name


def settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Return `--set` pairs as key → value, the value read as YAML: `64`, `true`, `[gptq, refit]`.

    Raises:
        UserError: a pair without `=` or without a key, a value that is not YAML, or a key given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set {pair!r} is not KEY=VALUE; write it like --set quantize.group_size=64.")
        if key in found:
            raise UserError(f"--set {key} is given twice; keep one of them.")
        try:
            found[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(
                f"--set {key}: {value!r} is not YAML; quote it if it has a colon or a brace."
            ) from error
    return found


def local(model: str) -> str:
    """Return where a model is: the embedded one's folder, or the name as it was given."""
    return str(embedded_model()) if model == EMBEDDED else model


def checkpoints(names: str | list[str] | None) -> str | list[str] | None:
    """Return names of checkpoints, those that are paths looked for before torch is imported.

    Raises:
        UserError: there is nothing at such a path.
    """
    for name in [names] if isinstance(names, str) else names or ():
        if not _several():
            check_exists(name)
    return names


def folders(paths: Path | list[Path]) -> Path | list[Path]:
    """Return folders of checkpoints, looked for before torch is imported.

    Raises:
        UserError: one is not there, or is a file.
    """
    for path in [paths] if isinstance(paths, Path) else paths:
        if not _several():
            check_folder(path)
    return paths


def _several() -> bool:
    """Whether this is one of several processes: then one of them looks and says so, once they have met."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def readable(text: str | None) -> str | None:
    """Return a text to calibrate or to train on, looked at before torch is imported.

    Raises:
        UserError: it cannot be read.
    """
    if text is not None and not _several():
        check_text(text)
    return text


def readable_files(texts: str | list[str] | None) -> str | list[str] | None:
    """Return texts to evaluate on, looked at before torch is imported.

    Raises:
        UserError: one of them cannot be read.
    """
    for text in [texts] if isinstance(texts, str) else texts or ():
        check_text_file(text)
    return texts


RECIPES_OWN = "what the recipe says"
MODEL_HELP = (
    "A folder, a name on the Hugging Face hub, or `embedded` for the small model that ships with Compress."
)

Model = Annotated[
    str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False, callback=checkpoints)
]
AnyCheckpoint = Annotated[
    str,
    typer.Argument(
        help="Any checkpoint, dense or compressed.", metavar="OUT", show_default=False, callback=checkpoints
    ),
]
CalibrationText = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Calibration text: a text, .jsonl or .json file, a dataset on the hub, or `embedded`.",
        metavar="TEXT",
        show_default=RECIPES_OWN,
        callback=readable,
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=(1 << 63) - 1, help="Decides which windows of the text are drawn.")
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="A shipped recipe or a scheme (see `compress recipes`), or a YAML file.",
        metavar="RECIPE",
        show_default=False,
        autocompletion=recipe_names,
    ),
]
SchemeName = Annotated[
    str | None,
    typer.Option(
        "--scheme",
        help="A recipe by what it writes: `W4A16`, `int8`, `Q4_K_M`, … (see `compress recipes`).",
        metavar="SCHEME",
        show_default=False,
        autocompletion=scheme_names,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a value of the recipe; the value is YAML. May be given several times.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes; errors are still printed.")
]
Device = Annotated[
    str, typer.Option(help="`auto` takes the GPU if there is one; or `cpu`, `cuda`, `cuda:1`.")
]
Precision = Annotated[
    Dtype, typer.Option("--dtype", help="What the model computes in; `auto` takes the checkpoint's own.")
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Refuse where less than 95% of a block's matrix parameters are compressed."
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads.", show_default="as many as torch takes")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the Python files that come with the checkpoint. Only if you trust its author.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="What the process may hold, such as `8GiB`: the run gives up time for it, or says how much would do.",
        metavar="SIZE",
        show_default="no bound",
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        "--device-memory",
        help="The same for an accelerator's memory, apart from the host's.",
        metavar="SIZE",
        show_default="no bound",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="A folder that keeps what a pass with gradients finds, for other recipes on the same model, text and seed.",
        metavar="DIR",
        show_default="nothing is kept",
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="A folder that `compress run` wrote.", metavar="OUT", show_default=False, callback=folders
    ),
]
Samples = Annotated[int | None, typer.Option(min=1, help="Calibration sequences.", show_default=RECIPES_OWN)]
Length = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens in a calibration sequence.", show_default=RECIPES_OWN),
]
Bos = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Begin every window of text with the BOS token, or none.",
        show_default="as the tokenizer does by itself",
    ),
]
Check = Annotated[
    bool,
    typer.Option("--check", help="Hold every tensor against the hashes of compress.json before it is used."),
]
OutputFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        help="`auto` writes what transformers and vLLM load, or our own where they cannot hold it; `dense` writes "
        "plain weights of the same values.",
        show_default=RECIPES_OWN,
    ),
]
