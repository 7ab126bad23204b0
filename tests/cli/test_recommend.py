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
from compress.formats import served
from compress.formats.served import measured
from compress.pipeline.recommend import LADDER, RUNTIMES, recommend
from compress.recipe.recipe import shipped


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["recommend", "embedded", *arguments])


@pytest.fixture
def best_w4_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped table without the rows of one recipe: that table grows with each measurement."""
    rows = {key: said for key, said in served._table().items() if key[0] != "best-w4"}
    monkeypatch.setattr(served, "_table", lambda: rows)


@pytest.mark.usefixtures("best_w4_is_not_measured")
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
    objections = {one["recipe"]: one["objection"] for one in found["candidates"]}
    assert objections["q4_k_m"] == "vllm does not read it"
    assert objections["w8"] == "vllm failed to read it when it was measured"
    assert objections["best-w4"] == "not measured in vllm"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_is_given_only_what_it_was_measured_to_read(runtime: str) -> None:
    candidates = recommend("embedded", runtime=runtime).candidates
    fitting = [one for one in candidates if one.objection is None]
    assert fitting
    for one in candidates:
        assert (one.objection is None) == (runtime in one.servers)
        assert all(measured(one.recipe, one.format, server) == "read" for server in one.servers)
        assert all(measured(one.recipe, one.format, server) == "not measured" for server in one.unmeasured)


@pytest.mark.usefixtures("best_w4_is_not_measured")
def test_servers_that_were_not_measured_are_said_to_be() -> None:
    found = {one.recipe: one for one in recommend("embedded").candidates}
    assert found["best-w4"].unmeasured == ("transformers", "vllm")
    assert found["best-w4"].servers == ()
    assert found["w8"].servers == ("transformers",)
    assert "(not measured)" in call().stdout


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
