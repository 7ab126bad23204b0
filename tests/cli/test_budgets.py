"""The options of budgets, and the commands that take them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from compress_cli.budgets import Asked
from compress_cli.main import app
from typer.testing import CliRunner

from compress.errors import UserError

SMALL = ["--samples", "4", "--length", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", initializer_range=0.1)


def test_what_was_not_given_is_no_argument() -> None:
    asked = Asked(bits=3.5, trials=0)
    assert asked.given
    assert asked.arguments == {"bits": 3.5, "trials": 0}
    assert not Asked(runtime="vllm").given


def test_a_recipe_and_a_budget_do_not_go_together() -> None:
    with pytest.raises(UserError, match="--recipe does not go with a budget"):
        Asked(bits=3.5).refuse_beside(recipe="w4-gptq", set=None)
    with pytest.raises(UserError, match="--save-recipe goes with a budget"):
        Asked(save_recipe=Path("x.yaml")).refuse_alone()


def test_run_and_sweep_write_models_within_their_budgets(model: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "out"
    command = ["run", str(model), "--bits", "5", "--runtime", "native", "--trials", "1", "-o", str(out)]
    done = runner.invoke(app, [*command, *SMALL, "--no-fresh-process", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["report"]["sensitivity"]["budget"]["allocations_measured"] == 1
    copied = runner.invoke(app, ["run", str(model), "--budget", "1GB", "-o", str(tmp_path / "copy"), *SMALL])
    assert "copied unchanged" in copied.output
    several = [
        "sweep",
        str(model),
        "--bits",
        "5,6",
        "--runtime",
        "native",
        "--trials",
        "0",
        "-o",
        str(tmp_path / "all"),
    ]
    swept = runner.invoke(app, [*several, *SMALL])
    assert swept.exit_code == 0, swept.output
    assert "5bits" in swept.stdout
    assert (tmp_path / "all" / "6bits" / "recipe.yaml").is_file()


def test_plan_tells_the_cost_and_the_smallest(model: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(model), "--ratio", "0.4", "--runtime", "native", "--json"])
    planned = json.loads(done.stdout)
    assert planned["smallest"] < planned["budget"] == int(0.4 * planned["source_bytes"])
    assert 0 < planned["cost"] < 4
    shown = CliRunner().invoke(app, ["plan", str(model), "--ratio", "0.4", "--runtime", "native"])
    assert "times the work of the run" in shown.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--budget", "4GG"], "write it like 4GB"),
        (["--budget", "1kB"], "below the smallest model"),
        (["--bits", "3", "--ratio", ".3"], "both set a budget"),
        (["--fit", "8GB"], "8GB-ram"),
        (["--bits", "4", "--runtime", "lama.cpp"], "did you mean 'llama.cpp'"),
        (["--bits", "4", "-r", "w4-gptq"], "--recipe does not go with a budget"),
        (["--bits", "nan"], "give a number above 0"),
        (["--bits", "4", "--time", "30"], "write it like 30ms-cpu"),
        (["--bits", "9", "--runtime", "vllm", "--time", "1s-cpu"], "--time goes with --runtime native"),
        (["--bits", "6", "--runtime", "native", "--time", "0.001us-cpu"], "ms on one core"),
        (["--time", "30ms-cpu"], "--time goes with a budget"),
    ],
)
def test_mistakes_end_in_one_sentence(model: Path, tmp_path: Path, options: list[str], sentence: str) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["run", str(model), "-o", str(out), *options])
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())
    assert not out.exists()
