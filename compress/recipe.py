"""A recipe says what becomes of which weights: YAML in, a frozen value out, and every mistake named by its key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from compress.embedded import recipes_dir
from compress.errors import UserError
from compress.registry import did_you_mean


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Calibrate(_Frozen):
    """Where the calibration tokens come from: a file, a hub dataset or ``embedded``."""

    data: str = "embedded"
    samples: int = Field(128, ge=1)
    length: int = Field(2048, ge=2)


class Quantize(_Frozen):
    """A grid: evenly spaced (``type: int``; :class:`compress.structures.integer.IntegerGrid` says what each key means), or the
    sixteen values of NF4 times a scale by group, 64 unless given."""

    type: Literal["int", "nf4"] = "int"
    bits: int = Field(ge=2, le=8)
    group: Annotated[int, Field(ge=1)] | Literal["channel", "tensor"] = 128
    symmetric: bool = True
    scales: Literal["minmax", "mse"] = "minmax"
    activations: Literal[8] | None = None

    @model_validator(mode="before")
    @classmethod
    def _group_of_nf4(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("type") == "nf4":
            return {"bits": 4, "group": 64, **data}
        return data

    @model_validator(mode="after")
    def _nf4_alone(self) -> Quantize:
        if self.type == "nf4":
            others = {"symmetric": self.symmetric, "scales": self.scales, "activations": self.activations}
            if self.bits != 4 or others != {"symmetric": True, "scales": "minmax", "activations": None}:
                raise ValueError("type nf4 has 4 bits and takes 'group' alone")
            if isinstance(self.group, str) or self.group not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
                raise ValueError("a group of type nf4 is a power of two from 32 to 4096")
        return self


class Prune(_Frozen):
    """Which elements become zero: a share of them (``sparsity``), or all but n of every m (``pattern: "2:4"``).

    ``scope`` says among which elements a share is chosen: a row, a layer, or with ``global`` all layers that the step
    takes; ``block: [rows, columns]`` chooses whole blocks over the layer. ``allocate`` says how a share is spread over
    the decoder blocks.
    """

    sparsity: float | None = Field(None, gt=0, lt=1)
    pattern: str | None = Field(None, pattern=r"^[1-9]\d*:[1-9]\d*$")
    scope: Literal["row", "layer", "global"] = "row"
    block: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    allocate: Literal["uniform", "owl", "fisher"] = "uniform"

    @model_validator(mode="after")
    def _one_of_both(self) -> Prune:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either 'sparsity' or 'pattern'")
        if self.pattern is not None:
            n, m = (int(part) for part in self.pattern.split(":"))
            if n >= m:
                raise ValueError(f"pattern {self.pattern} keeps n of every m and needs n < m")
            if self.scope != "row" or self.block is not None or self.allocate != "uniform":
                raise ValueError("'scope', 'block' and 'allocate' go with 'sparsity', not with 'pattern'")
        if self.block is not None and (self.scope == "global" or self.allocate != "uniform"):
            raise ValueError("blocks are chosen over a layer, with one share for all")
        if self.scope == "global" and self.allocate != "uniform":
            raise ValueError("'scope: global' already says how a share is spread: leave 'allocate' out")
        return self


class LowRank(_Frozen):
    """Two factors in the place of a weight, or beside what ``quantize`` or ``prune`` makes of it.

    ``ratio`` is the share of the weight's parameters that they take, ``rank`` their rank instead. ``columns`` keeps a share
    of the inputs as whole columns within the ratio. ``bits`` and ``group`` put the factors on an integer grid. ``allocate``
    says how the ratio is spread over the weights, and with ``split`` only how each weight's own is spread over its parts.
    With ``share``, weights that read the same inputs (q/k/v, gate/up) share an input factor where that loses less.
    """

    ratio: float | None = Field(None, gt=0, le=1)
    rank: int | None = Field(None, ge=1)
    columns: float | None = Field(None, gt=0, lt=1)
    bits: int | None = Field(None, ge=2, le=8)
    group: Annotated[int, Field(ge=1)] | Literal["channel", "tensor"] = "channel"
    allocate: Literal["uniform", "split", "energy", "truncation", "fisher"] = "uniform"
    share: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> LowRank:
        if (self.ratio is None) == (self.rank is None):
            raise ValueError("give either 'ratio' or 'rank'")
        if self.rank is not None and self.allocate != "uniform":
            raise ValueError("'allocate' spreads a 'ratio', not a 'rank'")
        if self.share and self.allocate == "uniform":
            raise ValueError("'share' goes with an 'allocate' other than 'uniform'")
        if self.columns is not None and self.ratio is None:
            raise ValueError("'columns' shares a 'ratio' with the factors")
        return self


class Drop(_Frozen):
    """How many decoder blocks are left out, and by what they are chosen: the ``loss`` without them, or the ``angle`` between
    their inputs and outputs."""

    blocks: int = Field(ge=1)
    by: Literal["loss", "angle"] = "loss"


class Narrow(_Frozen):
    """What share of the FFN neurons, and of the groups of query heads with the key and value head that they share, every
    decoder block keeps; what reads them is fitted anew.

    With ``allocate: fisher`` blocks keep different numbers of neurons, as many together, and those are kept that the model's
    loss leans on, as gradients tell. No configuration says so: the result is loaded after ``import compress``.
    """

    neurons: float | None = Field(None, gt=0, le=1)
    groups: float | None = Field(None, gt=0, le=1)
    allocate: Literal["uniform", "fisher"] = "uniform"

    @model_validator(mode="after")
    def _one_at_least(self) -> Narrow:
        if self.neurons is None and self.groups is None:
            raise ValueError("give 'neurons', 'groups' or both")
        if self.allocate != "uniform" and self.neurons is None:
            raise ValueError("'allocate' spreads 'neurons' over the blocks: give their share")
        return self


class Method(_Frozen):
    """A solver or a score by name, with its own options."""

    name: str
    options: Mapping[str, Any] = Field(default_factory=dict)


def _method(value: Any) -> Any:
    """``gptq`` or ``{name: gptq, damping: 0.02}`` → name and options."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and "name" in value and "options" not in value:
        return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
    return value


def _methods(value: Any) -> Any:
    return [_method(one) for one in value] if isinstance(value, list | tuple) else [_method(value)]


class Step(_Frozen):
    """What is done to the weights that ``targets`` names and ``ignore`` does not.

    Targets are ``linear`` (every linear layer of the decoder blocks), ``experts``, ``embeddings``, exact names, or ``re:`` and
    a regular expression anchored at the start. ``score`` may be left out: each solver has one that suits it.
    """

    targets: tuple[str, ...] = ("linear", "experts")
    ignore: tuple[str, ...] = ()
    quantize: Quantize | None = None
    prune: Prune | None = None
    lowrank: LowRank | None = None
    score: Annotated[Method, BeforeValidator(_method)] | None = None
    solver: Annotated[tuple[Method, ...], BeforeValidator(_methods)] = (Method(name="nearest"),)


class Recipe(_Frozen):
    """A whole recipe.

    Attributes:
        name: how it is called in tables and reports.
        when: one line for people: when to use it.
        calibrate: the data, where any step needs some.
        within_block: ``parallel`` solves a block's weights at once, ``sequential`` in the order in which data meets them with
            statistics gathered anew in between.
        format: ``auto``, ``compressed-tensors``, ``bitsandbytes``, ``native`` or ``dense``.
        allow_split_groups: let weights that servers fuse (q/k/v, gate/up) differ in scheme.
        reshape: edits of the blocks that keep their function, made before their weights are solved.
        drop: decoder blocks that are left out before anything else is done.
        narrow: what share of their widths the blocks keep, before any step.
        steps: what is done; a weight is taken by the last step that targets it.
    """

    name: str
    when: str = ""
    calibrate: Calibrate = Calibrate()
    within_block: Literal["parallel", "sequential"] = "parallel"
    format: Literal["auto", "compressed-tensors", "bitsandbytes", "native", "dense"] = "auto"
    allow_split_groups: bool = False
    reshape: Annotated[tuple[Method, ...], BeforeValidator(_methods)] = ()
    drop: Drop | None = None
    narrow: Narrow | None = None
    steps: tuple[Step, ...] = ()

    @model_validator(mode="after")
    def _does_something(self) -> Recipe:
        if not self.steps and self.drop is None and self.narrow is None:
            raise ValueError("a recipe needs 'steps' with at least one step, 'drop' or 'narrow'")
        return self

    @classmethod
    def load(cls, name_or_path: str | Path, settings: Mapping[str, Any] | None = None) -> Recipe:
        """A shipped recipe by name, or one from a YAML file, with ``settings`` such as ``quantize.group: 64`` put over it.

        Raises:
            UserError: no such recipe, not YAML, or a key or value that does not belong, named by its path.
        """
        path = _find(str(name_or_path))
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            raise UserError(f"{path} is not a recipe: it should be a mapping with 'name' and 'steps'")
        for key, value in (settings or {}).items():
            data = _set(data, key, value)
        return cls.parse(data, origin=str(name_or_path))

    @classmethod
    def parse(cls, data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
        """A recipe from plain data; raises ``UserError`` that names the first wrong key by its path."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UserError(f"{origin}: {_sentence(error)}") from None

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """This recipe with dotted keys put over it, as :meth:`load` does."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for key, value in settings.items():
            data = _set(data, key, value)
        return Recipe.parse(data, origin=self.name)

    def public(self) -> dict[str, Any]:
        """The recipe as plain data that tells nothing of the machine: a text file by its name alone."""
        data = self.model_dump(mode="json")
        text = self.calibrate.data
        if Path(text).is_file():
            data["calibrate"]["data"] = Path(text).name
        return data

    def fingerprint(self) -> str:
        """Hex digest of everything in the recipe."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def shipped() -> dict[str, Path]:
    """Name → file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(recipes_dir().glob("*.yaml"), key=lambda path: path.stem)}


def _find(name: str) -> Path:
    recipes = shipped()
    if name in recipes:
        return recipes[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        raise UserError(f"there is no recipe file {name}")
    raise UserError(f"there is no recipe called '{name}'{did_you_mean(name, recipes)}")


def _set(data: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """``data`` with ``key`` (dotted) set; a key of a step goes to every step that has its first part, or to all."""
    head = key.partition(".")[0]
    if head == "steps" or head in Recipe.model_fields:
        return _put(data, key.split("."), value)
    if head not in Step.model_fields:
        known = [*Recipe.model_fields, *Step.model_fields]
        raise UserError(f"--set {key}: a recipe has no '{head}'{did_you_mean(head, known)}")
    steps = data.get("steps") or []
    chosen = [step for step in steps if head in step] or steps
    changed = [_put(step, key.split("."), value) if step in chosen else step for step in steps]
    return {**data, "steps": changed}


def _put(data: Any, path: list[str], value: Any) -> Any:
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        if not head.isdigit() or int(head) >= len(data):
            raise UserError(f"--set: '{head}' is not the number of a step (0 to {len(data) - 1})")
        return [_put(item, rest, value) if i == int(head) else item for i, item in enumerate(data)]
    inner = data if isinstance(data, Mapping) else {"name": data} if isinstance(data, str) else {}
    return {**inner, head: _put(inner.get(head, {}), rest, value) if rest else value}


def _sentence(error: ValidationError) -> str:
    """The first mistake in words: which key, what is wrong, what was meant."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        return f"unknown key '{place}'{did_you_mean(key, _siblings(first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"the key '{place}' is missing"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"'{place}': {message}, not {first['input']!r}"


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the mapping at ``loc`` may have."""
    model: type[BaseModel] = Recipe
    children: dict[str, type[BaseModel]] = {
        "steps": Step,
        "quantize": Quantize,
        "prune": Prune,
        "lowrank": LowRank,
        "drop": Drop,
        "narrow": Narrow,
        "calibrate": Calibrate,
    }
    for part in loc:
        model = children.get(str(part), model)
    return list(model.model_fields)
