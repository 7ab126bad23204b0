from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from transformers import AutoTokenizer

from compress.evaluation import recall as module
from compress.evaluation.recall import recall, recall_task


@pytest.mark.parametrize("bos", [False, True])
def test_the_answer_stands_in_the_list(dense: Path, bos: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(dense)
    task = recall_task(tokenizer, cases=5, bos=bos)
    assert len(task.prompts) == 5
    for prompt, answer in zip(task.prompts, task.answers, strict=True):
        assert (int(prompt[0]) == tokenizer.bos_token_id) == bos
        text = tokenizer.decode(prompt, skip_special_tokens=True)
        number = tokenizer.decode(answer).strip()
        asked = text.rsplit("\n", 1)[1].removesuffix("=").strip()
        assert f"{asked} = {number}\n" in text


def test_it_is_the_same_task_every_time_and_another_for_another_seed(dense: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(dense)
    one, same, other = (recall_task(tokenizer, cases=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.prompts[0], same.prompts[0])
    assert not torch.equal(one.prompts[0], other.prompts[0])


def test_right_answers_are_counted(models: SimpleNamespace, dense: Path) -> None:
    task = recall_task(AutoTokenizer.from_pretrained(dense), cases=4)
    said = [*task.answers[:3], torch.zeros_like(task.answers[3])]
    with patch.object(module, "continue_prompts", side_effect=[one[None] for one in said]) as asked:
        assert recall(None, task) == 0.75  # type: ignore[arg-type]
    assert asked.call_args_list[0].args[2] == len(task.answers[0])
