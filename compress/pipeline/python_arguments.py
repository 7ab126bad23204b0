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
            text = None if data is None else os.fspath(data)
        else:
            text = str(write_documents(data, folder()))
        if isinstance(model, PreTrainedModel):
            path: str | Path = _written(model, tokenizer, folder)
        elif isinstance(model, str | os.PathLike):
            path = model if isinstance(model, str) else Path(model)
        else:
            raise UserError(
                f"the model is a folder, a name on the hub or a loaded transformers model, not {type(model).__name__}"
            )
        yield Plain(path, text, _recipe(recipe))


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
