"""What people wait for most often (a version, a help, a completion, a typo) needs no torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from compress_cli import library
from compress_cli.main import Commands, app
from typer.main import get_command

HEAVY = ("torch", "transformers", "accelerate", "numpy", "safetensors")
CALLS: dict[str, tuple[int, str]] = {
    "--version": (0, "."),
    "--help": (0, "Commands"),
    "rnu": (2, "'run'"),
    "run model --recpie w8": (2, "--recipe"),
    "run model -r w4-gtpq -o out": (2, "w4-gptq"),
    "plan model -r w4-gptq --set quantise.bits=4": (2, "quantize"),
    "plan model --scheme W4A61": (2, "W4A16"),
    **{
        f"{call} no-such.txt": (2, "no-such.txt")
        for call in (
            "run model -r w4-gptq -o out --data",
            "run model --budget 1GB -o out --data",
            "sweep model --budgets 1GB,2GB -o out --data",
            "heal . --source model --data",
            "train full model -o out --data",
            "eval model out --text",
            "eval model out --calibration",
            "inspect model --diagnose --data",
            "report . --diagnose --data",
        )
    },
    **dict.fromkeys(
        (
            "run ./none -r w4-gptq -o out",
            "plan ./none -r w4-gptq",
            "recommend ./none --fit 4GB",
            "sweep ./none --budgets 1GB,2GB -o out",
            "eval ./none out",
            "eval model ./none",
            "inspect ./none",
            "inspect model --diagnose --against ./none",
            "inspect model --diagnose --other-size ./none",
            "verify none --source model",
            "verify . --source ./none",
            "heal none --source model",
            "heal . --source ./none",
            "report none",
            "report . none",
            "report . --diagnose --against ./none",
            "pack none -o out",
            "unpack none -o out",
            "push none user/name",
            "export ./none -o out",
            "bench ./none",
            "bench . --source ./none",
            "generate ./none word",
            "serve ./none",
            "train full ./none -o out",
        ),
        (2, "There is no folder"),
    ),
    "recipes w4-gptq": (0, "name: w4-gptq"),
    "recipes": (0, "w4-gptq"),
    **{f"{name} --help": (0, "--verbose") for name in Commands.homes},
}
"""Arguments → the exit status and a word of what is printed."""
COMPLETION = {
    "_COMPRESS_COMPLETE": "complete_bash",
    "COMP_WORDS": "compress run m -r w4",
    "COMP_CWORD": "4",
}
SCRIPT = f"""
import json, sys
from compress_cli.main import app
from typer.testing import CliRunner
answers = []
for arguments, environment in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments, prog_name="compress", env=environment)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    answers.append([result.exit_code, result.output, heavy])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, list[str]]]:
    """Every call and the completion, one after the other in one process that has imported nothing else."""
    calls = [(call.split(), {}) for call in CALLS] + [([], COMPLETION)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    return dict(zip([*CALLS, "completion"], json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("call", CALLS)
def test_no_torch_for(call: str, answers: dict[str, tuple[int, str, list[str]]]) -> None:
    status, output, heavy = answers[call]
    assert (status, heavy) == (CALLS[call][0], [])
    assert CALLS[call][1] in output


def test_no_torch_for_a_completion(answers: dict[str, tuple[int, str, list[str]]]) -> None:
    _, output, heavy = answers["completion"]
    assert "w4-gptq" in output.split()
    assert heavy == []


def test_import_compress_needs_no_torch_and_still_registers() -> None:
    script = (
        "import sys, compress; assert 'torch' not in sys.modules, 'imported torch'\n"
        "assert 'compress' in dir(compress) and 'load' in dir(compress)\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as configs\n"
        "assert 'compress' in configs\n"
        "assert 'compress.runtime.quantizer' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_command_is_listed_with_the_first_sentence_of_its_docstring() -> None:
    for name, (home, purpose) in Commands.homes.items():
        module, _, function = home.partition(":")
        docstring = getattr(import_module(module), function).__doc__
        assert purpose == " ".join(docstring.split("\n\n")[0].split()), name


def test_a_command_has_the_options_of_all_commands() -> None:
    group: Any = get_command(app)
    for deferred in group.commands.values():
        assert {"-v", "--verbose"} <= {
            option for parameter in deferred.command.params for option in parameter.opts
        }


def test_the_library_declares_what_it_imports() -> None:
    tree = ast.parse(Path(str(library.__file__)).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    declared = {
        (alias.asname or alias.name): f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: home.replace("compress_cli:", "compress_cli.") for name, home in declared.items()} == (
        library.HOMES
    )
    assert sorted(library.HOMES) == sorted(library.__all__)
    for name in library.HOMES:
        found = getattr(library, name)
        assert getattr(found, "__name__", name).split(".")[-1] == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = library.nothing  # type: ignore[attr-defined]
