"""`compress recommend` names the nearest recipe that fits, and why the others do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from compress_cli.main import app
from typer.testing import CliRunner

import compress
from compress.allocate.amounts import parse_amount
from compress.errors import UserError
from compress.pipeline.recommend import LADDER, recommend
from compress.recipe.recipe import shipped


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["recommend", "embedded", *arguments])


def test_the_nearest_recipe_that_fits() -> None:
    done = call("--fit", "5MB", "--runtime", "vllm", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    chosen = found["chosen"]
    assert chosen["nbytes"] == compress.plan("embedded", chosen["recipe"]).total_bytes <= 5_000_000
    assert "vllm" in chosen["servers"]
    assert chosen["seconds"] > 0
    nearer = found["candidates"][: [one["recipe"] for one in found["candidates"]].index(chosen["recipe"])]
    assert nearer
    assert all(one["objection"] for one in nearer)
    assert {one["objection"] for one in found["candidates"] if one["recipe"] == "q4_k_m"} == {
        "vllm does not read it"
    }


def test_without_a_limit_and_for_llama_cpp() -> None:
    found = recommend("embedded")
    assert found.chosen == found.candidates[0]
    chosen = recommend("embedded", runtime="llama.cpp").chosen
    assert chosen is not None
    assert (chosen.recipe, chosen.needs) == ("q8_0", "nothing")
    done = call("--runtime", "llama.cpp")
    assert "compress run embedded -r q8_0 -o OUT" in done.stdout


def test_nothing_fits() -> None:
    done = call("--fit", "1MB")
    assert done.exit_code == 2
    assert "no shipped recipe fits" in done.stderr
    assert "the smallest takes" in done.stderr
    assert "no shipped recipe fits" not in done.stdout  # said once
    with pytest.raises(UserError, match="did you mean 'vllm'"):
        recommend("embedded", runtime="vlm")


def test_a_machine_is_a_limit_too() -> None:
    assert recommend("embedded", amount=parse_amount(fit="1GB-ram")).budget is not None


def test_the_ladder_holds_shipped_recipes() -> None:
    assert set(LADDER) <= set(shipped())
