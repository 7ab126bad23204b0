"""What the grids of a recipe take, their defaults, and what they refuse with which words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from compress.recipe.grids import OutsideGrid, Quantize
from compress.recipe.section import Section


def refused(section: type[Section], match: str, **data: Any) -> None:
    with pytest.raises(ValidationError, match=match):
        section(**data)


def test_an_integer_grid_by_default() -> None:
    grid = Quantize(bits=4)
    assert (grid.type, grid.group_size, grid.symmetric, grid.scales) == ("int", 128, True, "minmax")


def test_nf4_has_its_own_bits_and_group() -> None:
    grid = Quantize(type="nf4")
    assert (grid.bits, grid.group_size) == (4, 64)
    assert Quantize(type="nf4", group_size=256).group_size == 256


@pytest.mark.parametrize(
    "data",
    [{"bits": 3}, {"symmetric": False}, {"scales": "mse"}],
)
def test_nf4_takes_nothing_of_an_integer_grid(data: dict[str, Any]) -> None:
    refused(Quantize, "takes 'group_size' alone", type="nf4", **data)


@pytest.mark.parametrize("group", ["channel", "tensor", 16, 100, 8192])
def test_a_group_that_bitsandbytes_has_not(group: Any) -> None:
    refused(Quantize, "power of two from 32 to 4096", type="nf4", group_size=group)


@pytest.mark.parametrize(
    "data", [{"bits": 1}, {"bits": 9}, {"bits": 4, "group_size": 0}, {}, {"bits": "four"}]
)
def test_a_grid_out_of_range(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Quantize(**data)


@pytest.mark.parametrize("kind", ["fp8", "mxfp8", "mxfp4", "nvfp4"])
def test_a_float_type_fixes_what_its_format_fixes(kind: str) -> None:
    made = Quantize.model_validate({"type": kind})
    groups = {"fp8": "channel", "mxfp8": 32, "mxfp4": 32, "nvfp4": 16}
    assert (made.group_size, made.symmetric, made.scales) == (groups[kind], True, "mse")
    assert made.bits == (8 if kind.endswith("8") else 4)
    assert Quantize.model_validate(made.model_dump()) == made
    assert Quantize.model_validate({"type": kind, "scales": "minmax"}).scales == "minmax"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"type": "nvfp4", "group_size": 32}, "type nvfp4 has 'group_size: 16' and no other"),
        ({"type": "mxfp4", "symmetric": False}, "type mxfp4 has 'symmetric: true' and no other"),
        ({"type": "fp8", "bits": 6}, "type fp8 has 'bits: 8' and no other"),
        ({"type": "fp8", "group_size": 128}, "'group_size' channel, tensor, block, and no groups of columns"),
        ({"bits": 4, "group_size": "block"}, "'group_size: block' goes with type fp8"),
        ({"type": "nvfp4", "fallback": True}, "'fallback' and 'mix' go with the types of GGUF"),
    ],
)
def test_what_a_float_type_does_not_have(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Quantize.model_validate(settings)


@pytest.mark.parametrize("given", [8, {"bits": 8}, {"bits": 8, "group_size": "auto", "scales": "mse"}])
def test_a_grid_for_embeddings_by_its_bits(given: Any) -> None:
    grid = OutsideGrid.model_validate(given)
    assert (grid.bits, grid.group_size, grid.scales, grid.symmetric) == (8, "auto", "mse", True)


def test_what_is_given_for_embeddings_stays() -> None:
    grid = OutsideGrid.model_validate({"bits": 4, "group_size": 64, "scales": "minmax", "symmetric": False})
    assert (grid.group_size, grid.scales, grid.symmetric) == (64, "minmax", False)
    assert OutsideGrid.model_validate({"type": "nf4"}).group_size == "auto"
    assert OutsideGrid.model_validate({"type": "q6_k", "fallback": True}).bits == 6


@pytest.mark.parametrize(
    ("given", "match"),
    [(9, "less than or equal to 8"), (True, "dict")],
)
def test_grids_that_embeddings_cannot_have(given: Any, match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        OutsideGrid.model_validate(given)


def test_tables_of_values() -> None:
    assert (Quantize(type="shift").bits, Quantize(type="rf8").bits) == (4, 8)
    assert Quantize(type="shift", bits=3, group_size=64).group_size == 64
    refused(Quantize, "type rf8 has 8 bits", type="rf8", bits=4)
    refused(Quantize, "type shift has 2 or 3 or 4 or 5 bits", type="shift", bits=6)
    refused(Quantize, "takes 'bits' and 'group_size' alone", type="shift", symmetric=False)
    refused(Quantize, "groups of columns", type="shift", group_size="channel")
