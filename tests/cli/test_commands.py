"""Every command once, from a tiny checkpoint to its report, and what they say when something is wrong."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import compress_cli
import pytest
from compress_cli.main import Commands, app
from typer.main import get_command
from typer.testing import CliRunner

import compress as api

SMALL = ["--samples", "4", "--length", "32", "--set", "quantize.group_size=32"]
COMMANDS = list(Commands.homes)


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def succeed(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def one_sentence(*arguments: object) -> str:
    """The sentence of a command that fails."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("compress: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def compressed(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "tiny-w4"
    succeed("run", model, "-r", "w4-gptq", "-o", out, "--data", text, *SMALL, "--quiet")
    return out


@pytest.fixture(scope="module")
def figures(model: Path, compressed: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("figures") / "figures.json"
    succeed(
        "eval", model, compressed, "--text", text, "--length", 32, "--limit", 4, "--no-speed", "--save", path
    )
    return path


def test_figures_that_could_not_be_kept_are_not_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "evaluate", lambda *_, **__: pytest.fail("the models were measured"))
    assert "cannot be written" in one_sentence("eval", model, "--save", tmp_path / "no" / "figures.json")


def test_help_of_everything_has_examples() -> None:
    deferred = get_command(app).commands  # type: ignore[attr-defined]
    assert set(deferred) == set(COMMANDS)
    known = {name: one.command for name, one in deferred.items()}
    for name in COMMANDS:
        assert succeed(name, "--help")
        assert "Example" in known[name].help
        assert all(parameter.help for parameter in known[name].params if hasattr(parameter, "help"))
    assert all(name in succeed("--help") for name in COMMANDS)


def test_an_option_whose_value_has_its_name_says_its_name() -> None:
    """typer 0.27.2 drops the name of an option whose metavar is the same word, unless it is written out."""
    found = [one for path in Path(compress_cli.__file__).parent.glob("*.py") for one in _nameless(path)]
    assert len(found) > 30
    assert not [name for name, metavar in found if metavar == name.upper()]


def _nameless(path: Path) -> Iterator[tuple[str, str]]:
    """Names and metavars of the options of a module that do not write out their names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.arg(arg=name, annotation=ast.Subscript() as kind):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() as kind):
                pass
            case _:
                continue
        options = (
            one
            for one in ast.walk(kind)
            if isinstance(one, ast.Call) and ast.unparse(one.func) == "typer.Option"
        )
        for call in (one for one in options if not one.args):
            given = {key.arg: ast.literal_eval(key.value) for key in call.keywords if key.arg == "metavar"}
            yield name, given.get("metavar", "")


def test_no_command_shows_help() -> None:
    assert "Commands" in call().output


def test_version() -> None:
    assert succeed("--version").strip()


def test_recipes_lists_and_prints() -> None:
    listed = json.loads(succeed("recipes", "--json"))
    assert {"w8", "w4-rtn", "w4-gptq", "w3-gptq", "w2-gptq"} <= {row["name"] for row in listed}
    assert all(row["when"] for row in listed)
    short = succeed("recipes")
    assert [word for word in ("w4-gptq", "w8", "q4_k_m", "--all", "recommend") if word not in short] == []
    assert "w2-signround" not in short
    table = succeed("recipes", "--all")
    assert all(row["name"] in table and row["what"] in table for row in listed)
    assert all(row["what"] for row in listed)
    assert "name: w4-gptq" in succeed("recipes", "w4-gptq")
    assert json.loads(succeed("recipes", "w4-gptq", "--json"))["name"] == "w4-gptq"


def test_plan_and_run_agree(model: Path, compressed: Path) -> None:
    planned = json.loads(succeed("plan", model, "-r", "w4-gptq", *SMALL, "--json"))
    written = sum(path.stat().st_size for path in compressed.glob("*.safetensors"))
    assert planned["total_bytes"] == written
    shown = succeed("plan", model, "-r", "w4-gptq", *SMALL, "--weights")
    assert f"{written} bytes" in shown
    assert all(name in shown for name in planned["weights"])


def test_run_prints_json_alone(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = json.loads(
        succeed("run", model, "-r", "w4-rtn", "-o", out, "--set", "quantize.group_size=16", "--json")
    )
    assert data["out"] == str(out)
    assert data["report"]["bytes"]["planned"] == data["report"]["bytes"]["actual"]


def test_run_says_what_it_did(model: Path, tmp_path: Path) -> None:
    shown = succeed("run", model, "-r", "w8", "-o", tmp_path / "out", "--true-sequential")
    assert "smaller" in shown
    assert "written and verified" in shown


def test_verify(model: Path, compressed: Path) -> None:
    assert "is what it says" in succeed("verify", compressed, "--source", model)
    assert json.loads(succeed("verify", compressed, "--source", model, "--json"))["packed"] == 14


def test_verify_refuses_another_source(compressed: Path, tiny_model: Callable[..., Path]) -> None:
    one_sentence("verify", compressed, "--source", tiny_model("qwen3"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_inspect_counts_every_parameter(family: str, tiny_model: Callable[..., Path]) -> None:
    model = tiny_model(family)
    planned = json.loads(succeed("plan", model, "-r", "w4-rtn", "--set", "quantize.group_size=32", "--json"))
    found = json.loads(succeed("inspect", model, "--json"))
    assert found["bits_per_weight"] == 16
    kinds = {total["kind"]: total["count"] for total in found["totals"]}
    assert sum(kinds.get(kind, 0) for kind in ("linear", "conv1d", "expert")) == len(planned["weights"])
    assert "The largest" in succeed("inspect", model)


def test_inspect_sees_through_packing(model: Path, compressed: Path) -> None:
    dense, packed = (json.loads(succeed("inspect", path, "--json")) for path in (model, compressed))
    assert packed["parameters"] == dense["parameters"]
    assert packed["bytes"] < dense["bytes"]
    (linear,) = [total for total in packed["totals"] if total["kind"] == "linear"]
    assert linear["form"] == "int4 group 32"
    assert linear["count"] == 14


def test_eval_compares(model: Path, compressed: Path, text: Path, figures: Path) -> None:
    saved = json.loads(figures.read_text())
    assert saved["candidates"][0]["kl"] > 0
    window = ["--text", text, "--length", 32, "--limit", 4]
    printed = json.loads(succeed("eval", model, compressed, *window, "--no-speed", "--json"))
    assert printed["candidates"][0]["kl"] == saved["candidates"][0]["kl"]
    shown = succeed("eval", model, compressed, *window)
    assert "context of 32 tokens" in shown
    assert "KL to dense" in shown
    assert "decode tok/s" in shown


def test_report(compressed: Path, figures: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert str(page) in succeed("report", compressed, "--eval", figures, "--to", page)
    assert "<html" in page.read_text(encoding="utf-8")
    assert json.loads(succeed("report", compressed, "--to", page, "--json"))["recipe"]["name"] == "w4-gptq"


def test_the_report_keeps_a_diagnosis(compressed: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    succeed("report", compressed, "--diagnose", "--to", page)
    assert "Shape of the weights" in page.read_text(encoding="utf-8")
    succeed("report", compressed, "--to", page)
    assert "Shape of the weights" in page.read_text(encoding="utf-8")
    (compressed / "diagnosis.json").unlink()
    assert "--diagnose" in one_sentence("report", compressed, "--data", "embedded")
    assert "one output" in one_sentence("report", compressed, compressed, "--diagnose")


def test_several_outputs_on_one_page(
    model: Path, compressed: Path, text: Path, tmp_path: Path, figures: Path
) -> None:
    other = tmp_path / "tiny-w8"
    succeed("run", model, "-r", "w8", "-o", other, "--quiet", "--set", "quantize.group_size=32")
    page = tmp_path / "comparison.html"
    shown = succeed("report", compressed, other, "--eval", figures, "--to", page)
    assert "tiny-w8 was not measured" in shown
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["tiny-w4"])
    assert row.count("±") == 2
    assert str(page) in shown.replace("\n", "")
    assert "Losses by layer" in page.read_text(encoding="utf-8")
    found = json.loads(succeed("report", compressed, other, "--to", page, "--json"))
    assert list(found["outputs"]) == ["tiny-w4", "tiny-w8"]


def test_errors_are_one_sentence(model: Path, compressed: Path, text: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    empty = tmp_path / "empty"
    empty.mkdir()
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    run = ["run", model, "-r"]
    wrong: dict[str, Sequence[object]] = {
        "missing": ["run", tmp_path / "missing", "-r", "w8", "-o", new],
        "empty": ["run", empty, "-r", "w8", "-o", new],
        "w4-gptq": [*run, "w4-gtpq", "-o", new],
        "quantize": [*run, "w4-gptq", "-o", new, "--set", "quantise.bits=4"],
        "KEY=VALUE": [*run, "w4-gptq", "-o", new, "--set", "quantize.bits"],
        "group size 48": [*run, "w4-rtn", "-o", new, "--set", "quantize.group_size=48"],
        "--overwrite": [*run, "w4-gptq", "-o", compressed, "--data", text, *SMALL],
        "short.txt": [*run, "w4-gptq", "-o", new, "--data", short, "--set", "quantize.group_size=32"],
        "another.txt": ["eval", model, "--text", tmp_path / "another.txt"],
        "compress.json": ["report", model],
        "nothing": ["verify", tmp_path / "nothing", "--source", model],
        "recipes": ["recipes", "w4-gptk", "--json"],
    }
    for word, arguments in wrong.items():
        sentence = one_sentence(*arguments)
        assert word in sentence or word == "recipes"
    assert not new.exists()


def test_an_interrupted_run_says_that_it_can_go_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "compress", interrupted)
    result = call("run", model, "-r", "w8", "-o", "out")
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


def test_completion_knows_the_recipes() -> None:
    result = CliRunner().invoke(
        app,
        [],
        prog_name="compress",
        env={"_COMPRESS_COMPLETE": "complete_bash", "COMP_WORDS": "compress run m -r w4", "COMP_CWORD": "4"},
    )
    found = result.stdout.split()
    assert {"w4-gptq", "w4-rtn"} <= set(found)
    assert all(name.startswith("w4") for name in found)


def test_the_demo_compares_and_leaves_a_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    data = json.loads(
        succeed(
            "demo",
            "--out",
            out,
            "--recipes",
            "w8",
            "--recipes",
            "w4-rtn",
            "--windows",
            2,
            "--quiet",
            "--json",
        )
    )
    assert [row["name"] for row in data["evaluation"]["candidates"]] == ["w8", "w4-rtn"]
    assert (out / "report.html").is_file()
    assert (out / "w4-rtn" / "config.json").is_file()
    assert "--overwrite" in one_sentence("demo", "--out", out, "--recipes", "w8", "--quiet")
