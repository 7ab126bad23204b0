"""The matrix of servers: what is compared, which rows stay, what is said of what was not run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.servers.matrix import (
    HEALED,
    NO_INTERPRETER,
    Job,
    checkpoints,
    compared,
    merged,
    recipe_for,
    unread,
    wanted,
)
from benchmarks.servers.programs import RUNNERS, SERVERS, Questions, ask
from benchmarks.servers.runners.torch_figures import greedy, torch_figures
from benchmarks.servers.table import COMPRESS_ALONE, matrix_table, served_by_table, under_the_tables
from compress.assets import embedded_model


def answer(**changes: Any) -> dict[str, Any]:
    return {"perplexity": 10.0, "top1": [[1, 2, 3, 4]], "greedy": [[5, 6, 7, 8]], **changes}


def row(**changes: Any) -> dict[str, Any]:
    head = {"model": "m", "recipe": "w8", "format": "gguf", "server": "llama.cpp", "date": "2026-01-02"}
    return {**head, "version": "1", **changes}


def test_agreement_counts_tokens_and_text_up_to_the_first_difference() -> None:
    found = compared(answer(), answer(perplexity=11.0, top1=[[1, 2, 0, 4]], greedy=[[5, 0, 7, 8]]))
    assert found == {"perplexity_ours": 10.0, "perplexity": 11.0, "top1": 0.75, "greedy": 0.25}
    assert compared(answer(), answer())["greedy"] == 1.0


def test_a_row_replaces_its_own_and_an_absent_server_replaces_nothing() -> None:
    before = [row(perplexity=1.0), row(recipe="w4", perplexity=2.0)]
    new = [
        row(not_run=NO_INTERPRETER),
        row(recipe="w4", perplexity=3.0),
        row(recipe="w3", not_run=NO_INTERPRETER),
    ]
    found = {each["recipe"]: each for each in merged(before, new)}
    assert found["w8"]["perplexity"] == 1.0
    assert found["w4"]["perplexity"] == 3.0
    assert found["w3"]["not_run"] == NO_INTERPRETER


def test_the_tables_say_what_failed_and_what_was_not_run() -> None:
    figures = {"perplexity_ours": 10.0, "perplexity": 10.2, "top1": 0.9, "greedy": 0.5}
    rows = [
        row(**figures),
        row(recipe="w4", error="no kernel"),
        row(server="transformers", not_run=NO_INTERPRETER),
    ]
    text = served_by_table(rows)
    assert "1 of 2" in text
    assert "at most 2.0%" in text
    assert "w4" in text
    assert "not run" in text
    assert "fails: no kernel" in matrix_table(rows)


def test_recipes_of_the_native_form_are_told_apart_from_those_that_were_not_run() -> None:
    rows = [
        row(perplexity=10.0),
        row(recipe="svd80", format="native", server=None, not_run=COMPRESS_ALONE),
        row(recipe="wanda", format="native", server=None, not_run=COMPRESS_ALONE),
        row(recipe="wanda", error="no kernel"),
        row(recipe="w3", not_run="no room"),
    ]
    native, refused, missing = (
        under_the_tables(rows, ["w8", "svd80", "wanda", "w3", "w2"]).strip().split("\n\n")
    )
    assert native.endswith("reads: `svd80`.")
    assert refused == "Not written: `w3`."
    assert missing == "Recipes not run: `w2`."
    assert under_the_tables(rows, ["w8", "wanda"]) == ""


def test_what_no_server_reads_is_known_by_its_plan(tmp_path: Path) -> None:
    job = Job(
        "embedded", embedded_model(), Questions(tmp_path / "ids.npy"), tmp_path, {"samples": 2, "length": 64}
    )
    assert list(checkpoints(job, "sparse50-wanda", [])) == [("native", COMPRESS_ALONE)]
    assert not any(tmp_path.iterdir())  # nothing was run
    assert unread(job, "sparse50-wanda", ["gguf"]) is None
    assert unread(job, "w8", []) is None


def test_a_recipe_that_heals_is_trained_on_little() -> None:
    heal = recipe_for("w2-heal", {"samples": 2}).heal
    assert heal is not None
    assert heal.tokens == HEALED
    assert recipe_for("w8", {"samples": 2}).heal is None


def test_long_notes_are_cut_and_sizes_are_in_megabytes() -> None:
    text = matrix_table([row(error="x" * 500, bytes=12_345_678, bytes_outside=4_000_000)])
    assert "x" * 500 not in text
    assert "…" in text
    assert "12.3" in text
    assert "4.0" in text


def test_further_formats_follow_from_the_first() -> None:
    formats = ["gguf", "gptq", "dense"]
    assert wanted("compressed-tensors", formats) == formats
    assert wanted("native", formats) == ["gguf", "dense"]
    assert wanted("dense", formats) == ["gguf"]
    assert wanted("gguf", formats) == []


def test_a_recipe_on_little_text() -> None:
    recipe = recipe_for("w4-gptq", {"samples": 2, "length": 16}, "dense")
    assert (recipe.calibrate.samples, recipe.calibrate.length, recipe.format) == (2, 16, "dense")


def test_every_server_has_its_runner() -> None:
    assert all((RUNNERS / server.runner[0]).is_file() for server in SERVERS.values())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_greedy_text_is_that_of_transformers(tiny: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny).eval()
    prompts = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with torch.no_grad():
        expected = model.generate(
            prompts, max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=99
        )
    assert greedy(model, prompts, 5) == expected[:, 3:].tolist()


def test_plain_transformers_answers_for_each_folder(tiny: Path, tmp_path: Path) -> None:
    """In a process of its own; a folder that it cannot open is an answer, and ends nothing."""
    ids = np.arange(24).reshape(2, 12)
    np.save(tmp_path / "ids.npy", ids)
    questions = Questions(tmp_path / "ids.npy", prompts=1, prompt=4, new=3)
    server = SERVERS["transformers"]
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / "empty", tiny]
    broken, found = ask(server, Path(sys.executable), questions, folders, tmp_path)
    assert str(tmp_path) not in broken["error"]
    assert found["version"]
    mine = torch_figures(LlamaForCausalLM.from_pretrained(tiny).eval(), ids, questions.job([]))
    agreement = compared(mine, found)
    assert agreement["perplexity"] == pytest.approx(agreement["perplexity_ours"], rel=1e-5)
    assert (agreement["top1"], agreement["greedy"]) == (1.0, 1.0)
