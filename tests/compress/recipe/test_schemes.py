"""Schemes: what a recipe writes under a name of another tool is what that tool's own table says of the name."""

from __future__ import annotations

from functools import cache
from typing import Any

import gguf
import pytest
from compress_kernels.layouts import GGUFBlocks, PackedFloat, PackedInteger, PlainInteger
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

from compress import plan
from compress.assets import embedded_model
from compress.errors import UserError
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe, find_recipe, shipped
from compress.recipe.schemes import ELSEWHERE, SCHEMES, Scheme, find_scheme, plain

BY_NAME = {scheme.name: scheme for scheme in SCHEMES}
NAMES = [*BY_NAME, *(stem.upper().replace("-", "_") for stem in shipped())]
PRESETS = [name for name in NAMES if name in PRESET_SCHEMES]
TYPES = [
    name for name in NAMES if hasattr(gguf.LlamaFileType, f"MOSTLY_{name}") and name not in PRESET_SCHEMES
]
OTHERS: dict[str, dict[str, Any]] = {
    "AWQ": {"bits": 4, "group": 128, "symmetric": True},
    "HQQ": {"bits": 4, "group": 128, "symmetric": True},
    "RTN": {"bits": 4, "group": 128, "symmetric": True},
    "bnb-4bit": {"name": "nf4", "block": 64},
    "2:4": {"name": "n:m", "n": 2, "m": 4},
    "SparseGPT": {"name": "bitmask"},
    "Wanda": {"name": "bitmask"},
    "SVD-LLM": {"name": "low-rank"},
}
FORMATS = {"bnb-4bit": "bitsandbytes", **dict.fromkeys(("2:4", "SparseGPT", "Wanda", "SVD-LLM"), "native")}


@cache
def planned(name: str) -> Plan:
    # A plan of ranks by layer would run the model: here only the form of the factors counts.
    settings = {"lowrank": {"ratio": 0.8}} if name == "SVD-LLM" else {}
    return plan(embedded_model(), name, settings=settings)


def test_every_scheme_is_held_against_something() -> None:
    assert {*PRESETS, *TYPES, *OTHERS} >= BY_NAME.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_of_compressed_tensors(name: str) -> None:
    """Bits, symmetry, groups and rounded inputs, as the library's preset of that name has them."""
    preset, made = PRESET_SCHEMES[name], planned(name)
    assert made.format == "compressed-tensors"
    (group,) = made.quantization_config["config_groups"].values()  # type: ignore[index]
    for key in ("num_bits", "symmetric", "group_size"):
        assert group["weights"][key] == getattr(preset["weights"], key)
    for key in ("type", "strategy"):
        assert group["weights"][key] == str(getattr(preset["weights"], key))
    inputs = preset.get("input_activations")
    assert (group["input_activations"] is None) == (inputs is None)
    if inputs is not None:
        assert group["input_activations"]["num_bits"] == inputs.num_bits
        assert group["input_activations"]["dynamic"] == inputs.dynamic
    layouts = {weight.layout for weight in made.weights}
    assert all(isinstance(layout, PackedFloat | PackedInteger | PlainInteger) for layout in layouts)
    assert {layout.bits for layout in layouts} == {preset["weights"].num_bits}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TYPES)
def test_a_file_type_of_llama_cpp(name: str) -> None:
    """Most weights of the blocks have the type that the name begins with."""
    made = planned(name)
    assert made.format == "gguf"
    types = [
        w.layout.type for w in made.weights if isinstance(w.layout, GGUFBlocks) and w.view.block is not None
    ]
    main = "_".join(name.lower().split("_")[:2])
    assert max(set(types), key=types.count) == main
    assert {weight.view.kind for weight in made.weights} >= {"linear", "embedding"}


@pytest.mark.parametrize("name", ["Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"])
def test_experts_have_the_type_too(name: str) -> None:
    types = {step.targets: step.quantize.type for step in Recipe.load(name).steps if step.quantize}
    assert types[("linear",)] == types[("experts",)] == name.lower()


@pytest.mark.parametrize("name", OTHERS)
def test_a_scheme_without_a_table(name: str) -> None:
    made = planned(name)
    assert made.format == FORMATS.get(name, "compressed-tensors")
    for weight in made.weights:
        facts = weight.layout.to_json()
        assert {key: facts.get(key) for key in OTHERS[name]} == OTHERS[name]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("w4a16", "W4A16"),
        ("w4-a16", "W4A16"),
        ("W4A16-asym", "W4A16_ASYM"),
        ("INT4", "W4A16"),
        ("int8", "INT8"),
        ("gptq", "W4A16"),
        ("Awq", "AWQ"),
        ("BNB_4BIT", "bnb-4bit"),
        ("q4-k-s", "Q4_K_S"),
        ("2:4", "2:4"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert find_scheme(spelling) is BY_NAME[name]
    assert Recipe.load(spelling) == Recipe.load(name)


@pytest.mark.parametrize(
    ("spelling", "recipe"),
    [
        ("Q4_K_M", "q4_k_m"),
        ("q4-0", "q4_0"),
        ("NF4", "nf4"),
        ("W4_GPTQ", "w4-gptq"),
        ("W8A8", "w8a8"),
        ("W4A8", "w4a8"),
    ],
)
def test_recipes_are_schemes_too(spelling: str, recipe: str) -> None:
    assert find_recipe(spelling) == (shipped()[recipe], {})


def test_no_name_means_two_things() -> None:
    """Case, dashes and underscores aside; no alias hides a shipped recipe."""
    words = [
        plain(word) for one in (*SCHEMES, *ELSEWHERE) for word in {plain(w) for w in (one.name, *one.aliases)}
    ]
    words += [plain(name) for name in shipped()]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_what_a_scheme_changes_is_told(scheme: Scheme) -> None:
    recipe = Recipe.load(scheme.name)
    assert recipe.name == (scheme.name if scheme.settings else scheme.recipe)
    assert recipe.when.endswith(".")
    for key, value in scheme.settings.items():
        assert repr(value) in repr(recipe.model_dump(mode="json")), key


def test_settings_come_after_those_of_the_scheme() -> None:
    recipe = Recipe.load("W8A16", {"quantize.group_size": 64, "name": "mine"})
    assert recipe.name == "mine"
    assert recipe.steps[0].quantize is not None
    assert recipe.steps[0].quantize.group_size == 64


@pytest.mark.parametrize("one", ELSEWHERE, ids=lambda one: one.name)
def test_a_scheme_of_other_tools_is_refused_with_the_nearest(one: Any) -> None:
    Recipe.load(one.nearest)
    for spelling in (one.name.lower(), *one.aliases):
        with pytest.raises(UserError, match="is not written here") as caught:
            Recipe.load(spelling)
        assert str(caught.value).endswith(one.nearest)


@pytest.mark.parametrize("name", sorted(PRESET_SCHEMES.keys() - {"UNQUANTIZED", *NAMES}))
def test_a_preset_that_is_not_written_is_no_misspelling(name: str) -> None:
    with pytest.raises(UserError, match="is not written here"):
        find_recipe(name)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("W4B16", "W4A16"), ("w4-gtpq", "w4-gptq"), ("Q4_K_X", "q4_k_m")]
)
def test_a_misspelt_name(wrong: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        Recipe.load(wrong)


def test_a_file_is_not_a_scheme(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: mine\nsteps: [{quantize: {bits: 4}}]\n", encoding="utf-8")
    assert find_recipe("mine.yaml")[1] == {}
    with pytest.raises(UserError, match="no recipe or scheme called 'mine.yaml'"):
        find_recipe("mine.yaml", files=False)
