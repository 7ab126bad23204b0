"""Every form of record that data sets have, and what is said of others."""

from __future__ import annotations

from typing import Any

import pytest

from compress.errors import UserError
from compress.text.records import Messages, TokenIds, documents_of

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
CHAT = Messages((USER, ASSISTANT))


@pytest.mark.parametrize(
    ("value", "documents"),
    [
        ("words", ["words"]),
        ({"text": "words", "id": 7}, ["words"]),
        ({"text": None, "messages": [USER, ASSISTANT]}, [CHAT]),
        ({"messages": [USER, ASSISTANT]}, [CHAT]),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
            [CHAT],
        ),
        ({"conversations": [USER, ASSISTANT]}, [CHAT]),
        ({"input_ids": [3, 1, 2]}, [TokenIds((3, 1, 2))]),
        ({"input_ids": [[3, 1, 2]], "attention_mask": [[1, 1, 1]]}, [TokenIds((3, 1, 2))]),
        ({"prompt": "1 + 1 =", "completion": " 2"}, ["1 + 1 = 2"]),
        ({"prompt": [USER], "completion": [ASSISTANT]}, [CHAT]),
        ([3, 1, 2], [TokenIds((3, 1, 2))]),
        ([USER, ASSISTANT], [CHAT]),
        ([[USER, ASSISTANT], [USER]], [CHAT, Messages((USER,))]),
        ([{"text": "a"}, "b", {"input_ids": [5]}], ["a", "b", TokenIds((5,))]),
        ([], []),
    ],
)
def test_forms(value: Any, documents: list[Any]) -> None:
    assert list(documents_of(value, "here")) == documents


def test_alpaca_is_the_prompt_of_its_authors() -> None:
    (bare,) = documents_of({"instruction": "Count.", "input": "", "output": "1 2"}, "here")
    assert bare == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nCount.\n\n### Response:\n1 2"
    )
    (given,) = documents_of({"instruction": "Count.", "input": "to 2", "output": "1 2"}, "here")
    assert isinstance(given, str)
    assert "paired with an input" in given
    assert "### Input:\nto 2\n\n### Response:\n1 2" in given


def test_a_message_keeps_what_else_it_says() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    (chat,) = documents_of({"messages": [USER, call]}, "here")
    assert chat == Messages((USER, call))


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert list(documents_of({"text": "a\ud800b"}, "here")) == ["a\ufffdb"]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"body": "b"}, 'here has neither a "text" nor "messages"'),
        (7, "here has neither"),
        (None, "here has neither"),
        ([[[[["too deep"]]]]], "has neither"),
        ([{"text": "a"}, {"body": "b"}], "here, element 1 has neither"),
        ({"text": 3}, '"text" must be a string'),
        ({"messages": "hi"}, "a conversation must be an array"),
        ({"messages": [{"content": "no role"}]}, "a conversation must be an array"),
        ({"messages": []}, "a conversation must be an array"),
        ({"input_ids": [1, -2]}, "none below zero"),
        ({"input_ids": [1, 1 << 63]}, "none below zero"),
        ({"input_ids": [1, True]}, "none below zero"),
        ({"input_ids": "1 2"}, "token ids must be an array"),
        ({"instruction": "a", "output": 3}, '"output" must be a string'),
    ],
)
def test_what_has_no_form_is_refused(value: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        list(documents_of(value, "here"))
