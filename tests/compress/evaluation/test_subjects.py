"""Names, folders and tokenizers of the checkpoints of an evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from compress.assets import embedded_model
from compress.errors import UserError
from compress.evaluation.subjects import common_tokenizer, open_subjects, parameter_count, probe_text


def test_names_are_the_last_parts_of_paths(tmp_path: Path) -> None:
    shutil.copytree(embedded_model(), tmp_path / "small")
    subjects = open_subjects(["embedded", tmp_path / "small"], trust_remote_code=False)
    assert [subject.name for subject in subjects] == ["embedded", "small"]
    assert subjects[0].folder == embedded_model()


def test_names_that_would_be_alike_are_whole_paths(tmp_path: Path) -> None:
    paths = [tmp_path / parent / "out" for parent in ("a", "b")]
    for path in paths:
        shutil.copytree(embedded_model(), path)
    subjects = open_subjects(paths, trust_remote_code=False)
    assert [subject.name for subject in subjects] == [str(path) for path in paths]


def test_another_tokenizer_is_refused_by_the_name_of_its_checkpoint(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(embedded_model(), other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"the"', '"eht"'), encoding="utf-8")
    subjects = open_subjects(["embedded", other], trust_remote_code=False)
    with pytest.raises(UserError, match="other"):
        common_tokenizer(subjects, "the cat and the dog", trust_remote_code=False)


def test_probe_is_the_first_document_that_is_text() -> None:
    assert probe_text([[1, 2, 3], "abc", "def"]) == "abc"
    assert probe_text([[1, 2, 3]]) == ""


def test_parameters_of_a_packed_reference_are_those_of_its_architecture(tmp_path: Path) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=8)
    )
    assert parameter_count(tmp_path, model) == sum(p.numel() for p in model.parameters())
