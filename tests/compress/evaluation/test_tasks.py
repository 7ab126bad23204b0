from __future__ import annotations

import json
import sys
from pathlib import Path

import lm_eval.tasks
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from compress.errors import UserError
from compress.evaluation import evaluate, run_tasks

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def loaded(dense: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(dense), AutoTokenizer.from_pretrained(dense)


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"{n} + 1 =", "choices": [f" {n + 1}", f" {n}"], "answer": 0} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    return folder


def test_a_local_task_runs_offline(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], task_folder: Path
) -> None:
    (figure,) = run_tasks(*loaded, ["tiny_choice"], include_path=task_folder, limit=4)
    assert (figure.task, figure.metric, figure.samples) == ("tiny_choice", "acc", 4)
    assert 0 <= figure.value <= 1
    assert figure.value * 4 == round(figure.value * 4)


def test_an_unknown_task_is_refused(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    task_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = lm_eval.tasks.TaskManager

    def manager(include_path: str | None, include_defaults: bool = True) -> object:
        indexed.append(include_defaults)
        return real(include_path=include_path, include_defaults=False)  # the whole index takes seconds

    indexed: list[bool] = []
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    with pytest.raises(UserError, match=r"Unknown task tiny_chioce \(did you mean tiny_choice\?\)"):
        run_tasks(*loaded, ["tiny_chioce"], include_path=task_folder)
    assert indexed == [False, True]
    with pytest.raises(UserError, match="is no folder"):
        run_tasks(*loaded, ["tiny_choice"], include_path=task_folder / "none")


def test_a_missing_harness_says_what_to_install(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"compress-llm\[eval\]"):
        run_tasks(*loaded, ["tiny_choice"])


def test_an_unknown_task_is_refused_before_a_model_is_loaded(dense: Path, task_folder: Path) -> None:
    def load(*_: object, **__: object) -> PreTrainedModel:
        raise AssertionError("a model is loaded")

    text = task_folder.parent / "text.txt"
    text.write_text("The quick brown fox. " * 20, encoding="utf-8")
    with pytest.raises(UserError, match="is no folder"):
        evaluate(dense, [], text=text, load=load, length=16, tasks=["a"], include_path=task_folder / "none")
    with pytest.raises(AssertionError, match="a model is loaded"):
        evaluate(dense, [], text=text, load=load, length=16, tasks=["tiny_choice"], include_path=task_folder)
