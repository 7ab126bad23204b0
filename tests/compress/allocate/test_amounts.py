"""Budgets as they are written."""

from __future__ import annotations

from typing import Any

import pytest

from compress.allocate.amounts import (
    Amount,
    ModelSize,
    bytes_of,
    cache_bytes_of,
    parse_amount,
    parse_place,
    parse_size,
)
from compress.errors import UserError

MODEL = ModelSize(nbytes=2_000_000_000, numel=1_000_000_000, cache_bytes=100_000, positions=2048)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GB", 4_000_000_000),
        ("4 gb", 4_000_000_000),
        ("3.5GiB", 3_758_096_384),
        ("800MB", 800_000_000),
        ("1.5k", 1500),
        ("12B", 12),
        (".5TB", 500_000_000_000),
    ],
)
def test_sizes_are_read_with_their_units(text: str, nbytes: int) -> None:
    assert parse_size(text, "--budget") == nbytes


@pytest.mark.parametrize("text", ["4GG", "4", "GB", "", "-4GB", "4,5GB", "four GB", "4GB please"])
def test_misspelt_sizes_are_named_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="write it like 4GB"):
        parse_size(text, "--budget")


@pytest.mark.parametrize(
    ("given", "nbytes"),
    [
        ({"budget": "1GB"}, 1_000_000_000),
        ({"budget": 12345}, 12345),
        ({"bits": 4.0}, 500_000_000),
        ({"ratio": 0.3}, 600_000_000),
        ({"fit": "2GB-ram"}, 1_800_000_000 - 500_000_000 - 2048 * 100_000),
        ({"fit": "2gb-VRAM"}, 1_800_000_000 - 500_000_000 - 2048 * 100_000),
    ],
)
def test_every_kind_of_budget_becomes_bytes(given: dict[str, Any], nbytes: int) -> None:
    amount = parse_amount(**given)
    assert amount is not None
    assert bytes_of(amount, MODEL) == nbytes


def test_without_an_argument_there_is_no_budget() -> None:
    assert parse_amount() is None


def test_two_budgets_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="--bits and --ratio both"):
        parse_amount(bits=3, ratio=0.3)


@pytest.mark.parametrize(
    "given", [{"bits": 0.0}, {"bits": -3.0}, {"ratio": float("nan")}, {"budget": "0GB"}, {"budget": 0}]
)
def test_budgets_of_nothing_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="above 0"):
        parse_amount(**given)


def test_a_share_above_the_whole_is_refused() -> None:
    with pytest.raises(UserError, match="--ratio 4 is more than the model itself"):
        parse_amount(ratio=4)
    assert parse_amount(ratio=1) == Amount("ratio", 1, "1 of the source")


def test_a_place_is_a_size_or_a_machine() -> None:
    assert parse_place("4GB") == Amount("size", 4e9, "4GB")
    assert parse_place("8GB-ram") == parse_amount(fit="8GB-ram")
    for text in ("4", "0GB", "8GB-rom"):
        with pytest.raises(UserError, match=f"--fit '?{text}"):
            parse_place(text)


@pytest.mark.parametrize("text", ["8GB", "8GB-phone", "ram", "-ram"])
def test_a_machine_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_amount(fit=text)


def test_a_machine_too_small_for_any_weights_is_refused() -> None:
    with pytest.raises(UserError, match="leaves no memory"):
        bytes_of(Amount("fit", 5e8, "500MB-ram"), MODEL)


def test_keys_and_values_are_counted_by_their_heads() -> None:
    config = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
    assert cache_bytes_of(config, 2) == 2 * 3 * 2 * 8 * 2
    assert cache_bytes_of({}, 2) == 0
