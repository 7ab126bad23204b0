"""`compress generate` and `compress bench`: text, figures, and what they say when something is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_cli.main import app
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from compress.errors import UserError
from compress.runtime.bench import BenchSettings, measure

PROMPT = "The quick brown fox"


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("compress: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def compressed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "tiny-w4"
    group = ["--set", "quantize.group_size=32", "--format", "native"]
    result = call("run", model, "-r", "w4-rtn", "-o", out, *group, "--quiet")
    assert result.exit_code == 0, result.stderr
    return out


def test_greedy_text_is_that_of_transformers(model: Path) -> None:
    result = call("generate", model, PROMPT, "--max-new-tokens", 12, "--temperature", 0, "--dtype", "fp32")
    assert result.exit_code == 0, result.stderr
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = tokenizer(PROMPT, return_tensors="pt")
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = dense.generate(**tokens, max_new_tokens=12, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert result.stdout == tokenizer.decode(found, skip_special_tokens=True) + "\n"
    assert "tokens/s" in result.stderr
    assert "of memory" in result.stderr


def test_a_seed_decides(compressed: Path) -> None:
    def text(*options: object) -> str:
        result = call("generate", compressed, PROMPT, "--max-new-tokens", 12, "--quiet", *options)
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        return str(result.stdout)

    hot = ("--temperature", 5)
    assert text(*hot, "--seed", 1) == text(*hot, "--seed", 1) != text(*hot, "--seed", 2)


def test_figures_as_json(compressed: Path) -> None:
    result = call("generate", compressed, PROMPT, "--max-new-tokens", 4, "--chat", "--json", "--threads", 1)
    figures = json.loads(result.stdout)
    assert 0 < figures["new_tokens"] <= 4
    assert figures["prompt_tokens"] > 4
    assert figures["prefill_rate"] > 0
    assert figures["peak_bytes"] >= figures["memory_bytes"]


def test_generate_says_what_is_wrong(model: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    assert "prompt is empty" in refused("generate", model, "")
    assert "more than the 128" in refused("generate", model, PROMPT, "--max-new-tokens", 500)
    assert "no folder" in refused("generate", tmp_path / "nowhere", PROMPT)
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*", "chat_template*"))
    assert "no tokenizer" in refused("generate", bare, PROMPT)
    assert "no device 'tpu9000'" in refused("generate", model, PROMPT, "--device", "tpu9000")


def test_bench_sets_two_checkpoints_side_by_side(model: Path, compressed: Path) -> None:
    small = ["--prompt-length", 8, "--new-tokens", 4, "--batch", 2, "--repeats", 2, "--threads", 1]
    result = call("bench", compressed, "--source", model, *small, "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["settings"]["batch"] == 2
    dense, packed = answer["figures"]
    assert (dense["name"], packed["name"]) == (model.name, compressed.name)
    for one in (dense, packed):
        assert len(one["decode_rates"]) == 2
        assert min(one["prefill"], one["decode"], one["memory_bytes"]) > 0
        assert one["peak_bytes"] >= one["memory_bytes"]
        assert (one["threads"], one["dtype"], one["device"]) == (1, "bfloat16", "cpu")


def test_bench_says_what_is_wrong(model: Path, tmp_path: Path) -> None:
    assert "no folder" in refused("bench", model, "--source", tmp_path / "nowhere")
    with pytest.raises(UserError, match="more than the 128"):
        measure(model, BenchSettings(prompt_length=200))
