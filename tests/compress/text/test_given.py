"""Data given in Python becomes the documents that the readers of calibration text know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset, DatasetDict
from pandas import DataFrame
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from compress.errors import UserError
from compress.text.documents import open_documents
from compress.text.given import names_a_text, write_documents
from compress.text.records import Messages, TokenIds

CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
IDS = [[5, 6, 7], [8, 9, 10]]
PADDED = {
    "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
}
TOKENS = [TokenIds((5, 6, 7)), TokenIds((8, 9, 10))]


def read(data: Any, folder: Path) -> list[Any]:
    return open_documents(write_documents(data, folder)).all()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (["one", "two"], ["one", "two"]),
        (("one" for _ in range(2)), ["one", "one"]),
        ([CHAT, CHAT], [Messages(tuple(CHAT))] * 2),
        (CHAT, [Messages(tuple(CHAT))]),
        ([{"messages": CHAT}], [Messages(tuple(CHAT))]),
        (IDS, TOKENS),
        (IDS[0], TOKENS[:1]),
        (torch.tensor(IDS), TOKENS),
        (torch.tensor(IDS[0]), TOKENS[:1]),
        (numpy.array(IDS), TOKENS),
        ([torch.tensor(IDS[0]), numpy.array(IDS[1])], TOKENS),
        ([{"input_ids": IDS[0]}, {"text": "two"}], [TOKENS[0], "two"]),
        (Dataset.from_dict({"text": ["one", "two"]}), ["one", "two"]),
        (Dataset.from_dict({"input_ids": IDS}), TOKENS),
        (DataLoader(TensorDataset(torch.tensor(IDS)), batch_size=2), TOKENS),
        (DataLoader(["one", "two", "three"], batch_size=2), ["one", "two", "three"]),
        (DataLoader(Dataset.from_dict({"text": ["one", "two"]}), batch_size=2), ["one", "two"]),
        ([PADDED], [TOKENS[0], TokenIds((8, 9))]),
        (PADDED, [TOKENS[0], TokenIds((8, 9))]),
        (BatchEncoding({"input_ids": IDS, "attention_mask": [[1] * 3] * 2}), TOKENS),
        ({"text": ["one", "two"]}, ["one", "two"]),
        (DataFrame({"text": ["one", "two"]}), ["one", "two"]),
        (DataFrame({"input_ids": IDS}), TOKENS),
    ],
)
def test_every_form_becomes_documents(data: Any, expected: list[Any], tmp_path: Path) -> None:
    assert read(data, tmp_path) == expected


@pytest.mark.parametrize(
    "data", [7, b"bytes", {"texts": "one"}, [], [3.5], [{"when": object()}], torch.ones(2, 2), [None]]
)
def test_every_other_form_is_refused_in_a_sentence(data: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="calibration data"):
        write_documents(data, tmp_path)


def test_the_name_says_what_is_in_it(tmp_path: Path) -> None:
    first = write_documents(["one", "two"], tmp_path)
    assert write_documents(iter(["one", "two"]), tmp_path) == first
    assert write_documents(["one", "three"], tmp_path) != first


def test_what_is_a_name(tmp_path: Path) -> None:
    assert names_a_text("embedded")
    assert names_a_text(tmp_path / "text.txt")
    assert not names_a_text(["embedded"])


def test_of_several_splits_one_is_to_be_given(tmp_path: Path) -> None:
    splits = DatasetDict({"train": Dataset.from_dict({"text": ["one"]})})
    with pytest.raises(UserError, match="not DatasetDict: give one of its splits"):
        write_documents(splits, tmp_path)
