from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import lm_eval.tasks
import pytest
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import compress
from compress.errors import UserError
from compress.evaluation import evaluate, run_tasks
from compress.evaluation.tasks import find_tasks

ROOT = Path(__file__).resolve().parents[3]
RECIPE = {
    "name": "w8",
    "steps": [{"targets": ["linear"], "ignore": ["lm_head"], "quantize": {"bits": 8, "group_size": 32}}],
}
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


def test_an_output_has_the_figures_that_the_harness_alone_gives_it(
    models: SimpleNamespace, dense: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)  # the example names its data from here
    compress.compress(dense, RECIPE, tmp_path / "out")
    ours = evaluate(
        dense,
        [tmp_path / "out"],
        text=text,
        load=compress.load,
        length=16,
        limit=1,
        dtype="fp32",
        speed=False,
        tasks=["python_next_word"],
        include_path=ROOT / "examples" / "tasks",
    )
    assert json.loads(json.dumps(ours.to_json()))["candidates"][0]["tasks"][0]["task"] == "python_next_word"
    manager = lm_eval.tasks.TaskManager(include_path=str(ROOT / "examples" / "tasks"), include_defaults=False)
    for row in ours.rows:
        alone = lm_eval.simple_evaluate(
            model=HFLM(pretrained=row.path, dtype="float32", device="cpu"),
            tasks=["python_next_word"],
            task_manager=manager,
            bootstrap_iters=0,
        )
        (figure,) = row.tasks
        assert figure.samples == 20
        assert figure.value == alone["results"]["python_next_word"]["acc,none"]


def test_progress_takes_the_place_of_the_harness_s_bars(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    task_folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.WARNING, "lm_eval"):
        run_tasks(
            *loaded, ["tiny_choice"], include_path=task_folder, progress=lambda *step: told.append(step)
        )
    assert told[-1] == ("Running loglikelihood requests", 12, 12)
    assert "%|" not in capsys.readouterr().err
    assert caplog.messages == []


BROKEN = {
    "no data": (("data.jsonl", "nowhere.jsonl"), "cannot be loaded .*nowhere.jsonl"),
    "no such key": (("test_split: test", "test_split: other"), "cannot be loaded"),
    "unsafe": (("output_type", "unsafe_code: true\noutput_type"), "runs code"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_a_task_that_cannot_run_is_refused_before_a_model_is_loaded(
    case: tuple[tuple[str, str], str], dense: Path, text: Path, task_folder: Path
) -> None:
    def load(*_: object, **__: object) -> PreTrainedModel:
        raise AssertionError("a model is loaded")

    (old, new), message = case
    file = task_folder / "tiny.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        evaluate(dense, [], text=text, load=load, length=16, tasks=["tiny_choice"], include_path=task_folder)


def test_a_file_that_is_no_yaml_is_named(task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        lambda include_path, include_defaults=False: real(include_path=include_path, include_defaults=False),
    )
    (task_folder / "tiny.yaml").write_text("task: [tiny_choice", encoding="utf-8")
    with pytest.raises(UserError, match=r"Unknown task tiny_choice.*no YAML: .*tiny\.yaml"):
        find_tasks(["tiny_choice"], task_folder)


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
