"""What Python callers may give in place of a folder, the name of a text and a recipe's file, made into these."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from compress.errors import UserError
from compress.recipe.recipe import Recipe
from compress.system.scratch import scratch_folder
from compress.text.given import names_a_text, write_documents

Model: TypeAlias = "str | Path | PreTrainedModel"
RecipeLike: TypeAlias = "str | Path | Mapping[str, Any] | Recipe"
LONGEST_NAME = 255
"""Characters of a file's name on every common file system."""


@dataclass(frozen=True)
class Plain:
    """The folder or name of a model, the name of a text, and a recipe or its name."""

    model: str | Path
    data: str | None
    recipe: str | Path | Recipe


@contextmanager
def plain_arguments(
    model: Model, recipe: RecipeLike, data: Any, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[Plain]:
    """A loaded model and data in Python become files in temporary folders, which last as long as the context.

    Args:
        model: a folder, a name, or a loaded transformers model with all its weights.
        recipe: a name, a file, a mapping as a recipe's YAML has it, or a recipe.
        data: the name of a text, or what :func:`compress.text.given.write_documents` takes.
        tokenizer: of a loaded model; None opens the one that it was loaded with.

    Raises:
        UserError: an argument is of another type, or a loaded model cannot be written.
    """
    with ExitStack() as stack:

        def folder() -> Path:
            return stack.enter_context(scratch_folder(Path(tempfile.gettempdir()), ".compress-given-"))

        if data is None or names_a_text(data):
            text = None if data is None else _named(os.fspath(data))
        else:
            text = str(write_documents(data, folder()))
            stack.enter_context(_without_path(text))
        if isinstance(model, PreTrainedModel):
            path: str | Path = _written(model, tokenizer, folder)
        elif isinstance(model, str | os.PathLike):
            path = model if isinstance(model, str) else Path(model)
        else:
            raise UserError(
                f"the model is a folder, a name on the hub or a loaded transformers model, not {type(model).__name__}"
            )
        yield Plain(path, text, _recipe(recipe))


def check_options(
    *,
    format: Any = None,
    gradients: Any = None,
    settings: Any = None,
    memory: Any = None,
    device_memory: Any = None,
    bos: Any = None,
    **whole: Any,
) -> None:
    """Refuse options of another type; ``whole`` are numbers, or None.

    Raises:
        UserError: one is; the sentence names it.
    """
    if format is not None and not isinstance(format, str):
        raise UserError(f"format is a name, not {type(format).__name__}")
    if gradients is not None and not isinstance(gradients, str | os.PathLike):
        raise UserError(f"gradients is a folder, not {type(gradients).__name__}")
    if isinstance(settings, Mapping) and (wrong := [key for key in settings if not isinstance(key, str)]):
        raise UserError(
            f"settings maps keys of the recipe, such as 'quantize.bits', to values: {wrong[0]!r} is none"
        )
    if bos is not None and not isinstance(bos, bool):
        raise UserError(f"bos is True, False or None, not {type(bos).__name__}")
    for name, size in (("memory", memory), ("device_memory", device_memory)):
        if size is not None and type(size) is not int and not isinstance(size, str):
            raise UserError(
                f"{name} is a size such as '8GiB' or a whole number of bytes, not {type(size).__name__}"
            )
    for name, value in whole.items():
        if value is not None and type(value) is not int:
            raise UserError(f"{name} is a whole number, not {type(value).__name__}")


def _named(data: str) -> str:
    """The name of a text, which is not the text itself."""
    if "\n" in data or (len(data) > LONGEST_NAME and not os.path.isfile(data)):
        raise UserError("data is the name of a text, and this is a text itself: give a list of strings")
    return data


@contextmanager
def _without_path(text: str) -> Iterator[None]:
    """Errors about data that was given in Python do not name the file that it became."""
    try:
        yield
    except UserError as error:
        said = (
            str(error)
            .replace(f"The text {text}", "The calibration data")
            .replace(text, "the calibration data")
        )
        raise UserError(said) from error


def _recipe(recipe: RecipeLike) -> str | Path | Recipe:
    if isinstance(recipe, Mapping):
        return Recipe.parse({"name": "unnamed", **recipe})
    if isinstance(recipe, str | os.PathLike | Recipe):
        return recipe if isinstance(recipe, str | Recipe) else Path(recipe)
    raise UserError(f"the recipe is a name, a file, a mapping or a Recipe, not {type(recipe).__name__}")


def _written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Callable[[], Path]
) -> Path:
    """A checkpoint of a loaded model and of its tokenizer, if there is one."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(
            "the model has parameters without values (on meta): load it whole, or give its folder"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(
            "the loaded model is quantized already: give its folder, whose weights are decoded as they are read"
        )
    target = folder()
    model.save_pretrained(target)
    found = tokenizer if tokenizer is not None else _tokenizer_of(model)
    if found is not None:
        found.save_pretrained(target)
    return target


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the checkpoint that a model was loaded from; None where there is none, which matters to text alone."""
    if not model.name_or_path:
        return None
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model.name_or_path)
    except Exception:  # whatever transformers makes of a folder without one
        return None
    return found
