"""Recipes: what is done to which weights. YAML becomes a frozen value; every mistake is named by its key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ValidationError, model_validator

from compress.assets import recipes_dir
from compress.errors import UserError
from compress.recipe.grids import OutsideGrid
from compress.recipe.heal import Heal
from compress.recipe.mistakes import sentence, whole_key
from compress.recipe.plain_data import check_plain_data
from compress.recipe.registry import did_you_mean
from compress.recipe.schemes import find_elsewhere, find_scheme, nearest_scheme, plain
from compress.recipe.section import Method, Section, as_methods
from compress.recipe.sections import Calibrate, DepthPruning, KVCache, Step, WidthPruning


class Recipe(Section):
    """A recipe.

    Attributes:
        name: its name in tables and reports.
        when: when to use it, in a line.
        calibrate: the calibration data, for steps that need some.
        true_sequential: solve a block's weights in the order of the data (q/k/v, o, gate/up, down), with statistics gathered
            anew in between; otherwise all on the same statistics.
        format: ``auto``, or one of the forms that a checkpoint is written in (:data:`compress.recipe.registry.EXPORTERS`).
        allow_split_groups: let weights that servers fuse (q/k/v, gate/up) differ in scheme.
        transforms: edits of the blocks that keep their function, made before their weights are solved.
        depth_pruning: decoder blocks that are removed before anything else.
        width_pruning: the share of their widths that the blocks keep; done before any step.
        kv_cache: how a server stores keys and values; calibrated and simulated like the activations of a step.
        steps: what is done to the weights; the last step that targets a weight takes it.
        heal: training after the steps, against the dense model, that leaves layout and bytes as they are.
        embeddings, head: the grids of the token embeddings and of the output head, whatever the steps say of them.
    """

    name: str
    when: str = ""
    calibrate: Calibrate = Calibrate()
    true_sequential: bool = False
    format: Literal[
        "auto",
        "compressed-tensors",
        "bitsandbytes",
        "gguf",
        "gptq",
        "awq",
        "mlx",
        "fp8",
        "modelopt",
        "native",
        "dense",
    ] = "auto"
    allow_split_groups: bool = False
    transforms: Annotated[tuple[Method, ...], BeforeValidator(as_methods)] = ()
    depth_pruning: DepthPruning | None = None
    width_pruning: WidthPruning | None = None
    kv_cache: KVCache | None = None
    steps: tuple[Step, ...] = ()
    heal: Heal | None = None
    embeddings: OutsideGrid | None = None
    head: OutsideGrid | None = None

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The steps, and behind them those that ``embeddings`` and ``head`` stand for."""
        grids = {"embeddings": self.embeddings, "head": self.head}
        added = (Step.outside(target, grid) for target, grid in grids.items() if grid is not None)
        return (*self.steps, *added)

    def place_of(self, index: int) -> str:
        """The key of a step of :attr:`all_steps`, for error sentences: ``steps.0`` or ``embeddings``."""
        return f"steps.{index}" if index < len(self.steps) else self.all_steps[index].targets[0]

    @model_validator(mode="after")
    def _does_something(self) -> Recipe:
        if not self.all_steps and self.depth_pruning is None and self.width_pruning is None:
            raise ValueError(
                "a recipe needs 'steps' with at least one step, 'depth_pruning' or 'width_pruning'"
            )
        if self.kv_cache is not None and not self.steps:
            raise ValueError("'kv_cache' goes with 'steps' that compress weights")
        return self

    @classmethod
    def load(cls, name_or_path: str | Path, settings: Mapping[str, Any] | None = None) -> Recipe:
        """A shipped recipe by its name or by that of its scheme, or a YAML file, with ``settings`` applied to it.

        Args:
            name_or_path: ``w4-gptq``, ``W4A16`` (:data:`compress.recipe.schemes.SCHEMES`) or ``mine.yaml``.
            settings: dotted key → value, such as ``quantize.group_size: 64``; they come after those of the scheme.

        Raises:
            UserError: no such recipe, not YAML, or a wrong key or value, named by its path.
        """
        path, changes = find_recipe(str(name_or_path))
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            raise UserError(f"{path} is not a recipe: it should be a mapping with 'name' and 'steps'")
        for key, value in (*changes.items(), *(settings or {}).items()):
            data = _set(data, key, value)
        return cls.parse(data, origin=str(name_or_path))

    @classmethod
    def parse(cls, data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
        """A recipe from plain data.

        Raises:
            UserError: a wrong key or value, named by its path.
        """
        check_plain_data(data, origin)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UserError(f"{origin}: {sentence(error, data, Recipe)}") from None

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """This recipe with dotted keys applied to it, as :meth:`load` does."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for key, value in settings.items():
            data = _set(data, key, value)
        return Recipe.parse(data, origin=self.name)

    def public(self) -> dict[str, Any]:
        """The recipe as plain data without paths of the machine: files appear by their names alone."""
        data = self.model_dump(mode="json")
        for step in data["steps"]:
            options = (step["score"] or {}).get("options") or {}
            if isinstance(options.get("file"), str):
                options["file"] = Path(options["file"]).name
        text = self.calibrate.data
        if os.path.isfile(text):
            data["calibrate"]["data"] = Path(text).name
        if self.heal is not None and self.heal.data is not None and os.path.isfile(self.heal.data):
            data["heal"]["data"] = Path(self.heal.data).name
        return data


def shipped() -> dict[str, Path]:
    """Name → file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(recipes_dir().glob("*.yaml"), key=lambda path: path.stem)}


def find_recipe(name: str, *, files: bool = True) -> tuple[Path, dict[str, Any]]:
    """The file of a recipe and the changes to it that its scheme makes.

    Args:
        name: of a shipped recipe, a YAML file or a scheme; in names case, dashes and underscores do not count.
        files: whether it may be a YAML file.

    Raises:
        UserError: there is none; the sentence names the nearest.
    """
    recipes = {plain(stem): path for stem, path in shipped().items()}
    if plain(name) in recipes:
        return recipes[plain(name)], {}
    path = Path(name)
    if files and os.path.isfile(path):
        return path, {}
    if files and (path.suffix in {".yaml", ".yml"} or "/" in name):
        raise UserError(f"there is no recipe file {name}")
    if (scheme := find_scheme(name)) is not None:
        return recipes[plain(scheme.recipe)], scheme.changes
    if (elsewhere := find_elsewhere(name)) is not None:
        raise UserError(
            f"{elsewhere.name} ({elsewhere.what}) is not written here; the nearest that is: {elsewhere.nearest}"
        )
    raise UserError(f"there is no recipe or scheme called '{name}'{_meant(name)}")


def _meant(name: str) -> str:
    """The end of an error sentence: the recipe or the scheme that is spelt most like ``name``."""
    hint = did_you_mean(name, shipped())
    scheme = nearest_scheme(name)
    return f"; did you mean '{scheme}'?" if scheme is not None and "did you mean" not in hint else hint


def _set(data: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """``data`` with ``key`` (dotted) set; a key of a step goes to every step that has its first part, or to all."""
    head = key.partition(".")[0]
    if head == "steps" or head in Recipe.model_fields:
        return _put(data, key.split("."), value)
    if head not in Step.model_fields:
        raise UserError(f"--set {key}: a recipe has no '{head}'{whole_key(key, data, Recipe)}")
    steps = data.get("steps") or []
    chosen = [step for step in steps if head in step] or steps
    changed = [_put(step, key.split("."), value) if step in chosen else step for step in steps]
    return {**data, "steps": changed}


def _put(data: Any, path: list[str], value: Any) -> Any:
    head, rest = path[0], path[1:]
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0], Mapping) and not head.isdigit():
        return [_put(data[0], path, value)]  # the only solver of a step that was parsed
    if isinstance(data, list):
        if not head.isdigit() or int(head) >= len(data):
            raise UserError(f"--set: '{head}' is not the number of a step (0 to {len(data) - 1})")
        return [_put(item, rest, value) if i == int(head) else item for i, item in enumerate(data)]
    inner = data if isinstance(data, Mapping) else {"name": data} if isinstance(data, str) else {}
    return {**inner, head: _put(inner.get(head, {}), rest, value) if rest else value}


def heal_of(data: Mapping[str, Any]) -> Heal:
    """The section ``heal`` alone, from plain data.

    Raises:
        UserError: a wrong key or value, named by its path.
    """
    check_plain_data(data, "heal")
    try:
        return Heal.model_validate(data)
    except ValidationError as error:
        raise UserError(f"heal: {sentence(error, data, Heal)}") from None
