"""Garbage: values of wrong types and sizes, and damaged text."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    3,
    7,
    65,
    10_000_000,
    1 << 31,
    1 << 63,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0",
    "null",
    "../../etc",
    "a\0b",
    "\ud800",
    "\u2028",
    "…" * 50_000,
    "x" * 100_000,
    [],
    {},
    [None],
    [1, "a", []],
    {"": 0},
    {"a": {"b": {}}},
    [[[]]],
)

NUMBERS: tuple[Any, ...] = (*(v for v in _VALUES if type(v) in (int, float)), 2, 64, 127, 1 << 20)


def value(random: Random) -> Any:
    """Any of the values, now and then a deeply nested one."""
    if random.random() < 0.05:
        deep: Any = []
        for _ in range(random.choice((50, 500))):
            deep = [deep] if random.random() < 0.5 else {"a": deep}
        return deep
    return random.choice(_VALUES)


def number(random: Random) -> Any:
    """A number of an unlikely size."""
    return random.choice(NUMBERS)


def mutated(random: Random, data: Any) -> Any:
    """Plain data with one place in it changed: a value replaced, a key renamed, removed or added, an element repeated."""
    if isinstance(data, dict) and data and random.random() < 0.9:
        key = random.choice(list(data))
        kind = random.random()
        if kind < 0.1:
            return {k: v for k, v in data.items() if k != key}
        if kind < 0.2:
            return {**data, random.choice(("x", "", "__class__", key + "\0", "x" * 5000)): data[key]}
        if kind < 0.55:
            return {**data, key: number(random) if type(data[key]) in (int, float) else value(random)}
        return {**data, key: mutated(random, data[key])}
    if isinstance(data, list) and data and random.random() < 0.8:
        index = random.randrange(len(data))
        kind = random.random()
        if kind < 0.2:
            return data[:index] + data[index + 1 :]
        if kind < 0.3:
            return data + data[index : index + 1] * random.choice((1, 1000))
        return [*data[:index], mutated(random, data[index]), *data[index + 1 :]]
    return value(random)


def to_json(data: Any) -> str:
    """JSON text, also of what JSON does not have (NaN) and of lone surrogates."""
    return json.dumps(data, ensure_ascii=True)


def _truncated(random: Random, text: bytes) -> bytes:
    return text[: random.randrange(len(text) + 1)]


def _flipped(random: Random, text: bytes) -> bytes:
    data = bytearray(text or b" ")
    for _ in range(random.choice((1, 3, 30))):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)


def _inserted(random: Random, text: bytes) -> bytes:
    place = random.randrange(len(text) + 1)
    return text[:place] + random.choice(_PIECES) + text[place:]


def _replaced(random: Random, text: bytes) -> bytes:
    return random.choice(
        (b"", b" ", b"\0" * 100, b"{}", b"[]", b"null", b"3", b'"x"', b"[" * 200_000, b'{"a":' * 100_000)
    )


_PIECES = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"[" * 5000,
    b'"',
    b"{",
    b",,",
    b"1" * 5000,
    b"\x1b[31m",
)
_DAMAGES: tuple[Callable[[Random, bytes], bytes], ...] = (_truncated, _flipped, _inserted, _replaced)


def damaged(random: Random, text: bytes) -> bytes:
    """Bytes cut off, flipped, put in, or replaced as a whole."""
    return random.choice(_DAMAGES)(random, text)
