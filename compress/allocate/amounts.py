"""Budgets as people write them: a size, bits a parameter, a share of the source, or a machine that the model has to fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compress.errors import UserError
from compress.system.units import in_bytes

Kind = Literal["size", "bits", "ratio", "fit"]

_UNITS = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
_MACHINES = ("ram", "vram")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*")
_KEPT_FREE = 0.1
"""Share of a machine's memory that the operating system and the program take."""
_PROGRAM = 5 * 10**8
"""Bytes of an interpreter with its libraries, or of a GPU's context."""
_CONTEXT = 4096
"""Tokens of context that have to fit beside the weights."""


@dataclass(frozen=True)
class Amount:
    """A budget of bytes for the weight files of an output.

    Attributes:
        kind: what ``value`` counts: bytes (``size``), bits of a parameter, the share of the source's bytes (``ratio``) or bytes
            of a machine's memory (``fit``).
        value: the number.
        text: as it was written, for sentences.
    """

    kind: Kind
    value: float
    text: str


@dataclass(frozen=True)
class ModelSize:
    """What a budget is relative to.

    Attributes:
        nbytes: of the source's weight files.
        numel: numbers in its tensors.
        cache_bytes: of keys and values for one token.
        positions: the longest context of the model, in tokens.
    """

    nbytes: int
    numel: int
    cache_bytes: int = 0
    positions: int = _CONTEXT


def parse_amount(
    *,
    budget: str | int | None = None,
    bits: float | None = None,
    ratio: float | None = None,
    fit: str | None = None,
) -> Amount | None:
    """The budget that one of the arguments gives; None where none is given.

    Args:
        budget: bytes of the weight files, such as ``"4GB"``, ``"3.5GiB"`` or a number of bytes.
        bits: bits that a parameter of the model takes on average, everything counted.
        ratio: the share of the source's bytes.
        fit: the memory of a machine, such as ``"8GB-ram"`` or ``"24GB-vram"``.

    Raises:
        UserError: several are given, or one cannot be read or is out of range.
    """
    given = {"--budget": budget, "--bits": bits, "--ratio": ratio, "--fit": fit}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} both set a budget; give one of them.")
    if budget is not None:
        size = budget if isinstance(budget, int) else parse_size(budget, "--budget")
        return Amount("size", _positive(size, "--budget", budget), str(budget))
    if bits is not None:
        return Amount("bits", _positive(bits, "--bits", bits), f"{bits:g} bits a parameter")
    if ratio is not None:
        if ratio > 1:
            raise UserError(
                f"--ratio {ratio:g} is more than the model itself: it is the share of its bytes that is left, such as 0.25."
            )
        return Amount("ratio", _positive(ratio, "--ratio", ratio), f"{ratio:g} of the source")
    return None if fit is None else _fit(fit)


def parse_place(text: str) -> Amount:
    """What has to hold a model: a size of its weight files (``4GB``) or a machine (``8GB-ram``, ``24GB-vram``).

    Raises:
        UserError: it is neither.
    """
    if "-" in text:
        return _fit(text)
    return Amount("size", _positive(parse_size(text, "--fit"), "--fit", text), text)


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as ``4GB``, ``3.5 GiB`` or ``800MB``; case does not matter.

    Raises:
        UserError: it is none; ``option`` names it in the sentence.
    """
    found = _SIZE.fullmatch(text)
    unit = found[2].upper() if found else ""
    unit = unit if unit in _UNITS else f"{unit}B"
    if found is None or unit not in _UNITS or not found[2]:
        raise UserError(f"{option} {text!r} is no size; write it like 4GB, 3.5GiB or 800MB.")
    return round(float(found[1]) * _UNITS[unit])


def bytes_of(amount: Amount, model: ModelSize) -> int:
    """The bytes that the weight files of an output may have.

    ``fit`` leaves a tenth of the memory and half a gigabyte to the system and the program, and room for the keys and values of
    4096 tokens, or of as many as the model takes.

    Raises:
        UserError: nothing is left for the weights.
    """
    if amount.kind == "size":
        return int(amount.value)
    if amount.kind == "bits":
        return int(amount.value * model.numel / 8)
    if amount.kind == "ratio":
        return int(amount.value * model.nbytes)
    cache = model.cache_bytes * min(model.positions, _CONTEXT)
    left = int(amount.value * (1 - _KEPT_FREE)) - _PROGRAM - cache
    if left <= 0:
        raise UserError(
            f"--fit {amount.text} leaves no memory for weights: the system and the program take "
            f"{in_bytes(amount.value - left)} of it; name a larger machine."
        )
    return left


def cache_bytes_of(config: Mapping[str, Any], itemsize: int) -> int:
    """Bytes of the keys and values of one token, by the settings of a decoder's configuration; 0 where they are not known."""
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not isinstance(layers, int) or not isinstance(heads, int) or heads < 1:
        return 0
    width = config.get("head_dim") or (config.get("hidden_size") or 0) // heads
    return 2 * layers * (config.get("num_key_value_heads") or heads) * width * itemsize


def _positive(value: float, option: str, text: object) -> float:
    if not 0 < value < float("inf"):
        raise UserError(f"{option} {text} is no budget; give a number above 0.")
    return value


def _fit(text: str) -> Amount:
    size, dash, machine = text.rpartition("-")
    if not dash or machine.lower() not in _MACHINES:
        raise UserError(f"--fit {text!r} names no machine; write it like 8GB-ram or 24GB-vram.")
    return Amount("fit", _positive(parse_size(size, "--fit"), "--fit", text), text)
