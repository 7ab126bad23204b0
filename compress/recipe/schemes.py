"""Schemes: names by which other tools call what a recipe writes, as data.

A name means what the presets of compressed-tensors, llama.cpp's file types or the libraries that coined it mean by it. Where a
group of 128 columns is usual, ``group_size: auto`` takes 64 or 32 for weights that 128 does not divide.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scheme:
    """A scheme that a shipped recipe writes.

    Attributes:
        name: as other tools spell it; case, dashes, underscores and blanks do not count.
        recipe: the shipped recipe.
        what: what it makes of the weights, in a few words.
        settings: changes to the recipe, by dotted key.
        aliases: other names of the same.
    """

    name: str
    recipe: str
    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        """The settings, and with them a name and a purpose of its own, since the recipe's no longer describe the result."""
        return {**self.settings, "name": self.name, "when": f"{self.what}."} if self.settings else {}


@dataclass(frozen=True)
class Elsewhere:
    """A scheme that other tools write and this one does not.

    Attributes:
        name: as other tools spell it.
        what: what it makes of the weights, in a few words.
        nearest: a scheme of :data:`SCHEMES` of much the same size.
        aliases: other names of the same.
    """

    name: str
    what: str
    nearest: str
    aliases: tuple[str, ...] = ()


def _packed(bits: int, recipe: str, **settings: Any) -> Scheme:
    return Scheme(f"W{bits}A16", recipe, f"{bits}-bit integers, symmetric, groups of 128", settings)


def _rounded(bits: int, inputs: int) -> Scheme:
    what = f"{bits}-bit integers in groups of 128, inputs rounded to {inputs} bits by token"
    settings = {"quantize.bits": bits, "activations.bits": inputs}
    return Scheme(f"W{bits}A{inputs}", "w4a8", what, settings)


def _gguf(name: str, recipe: str, *keys: str, value: str) -> Scheme:
    return Scheme(name, recipe, f"GGUF, llama.cpp's {name}", dict.fromkeys(keys, value))


_BLOCKS = ("steps.0.quantize.type", "steps.1.quantize.type")
"""The type of linear layers and of experts; embeddings and head have another."""


SCHEMES: tuple[Scheme, ...] = (
    _packed(2, "w2-gptq", **{"quantize.symmetric": True}),
    _packed(3, "w3-gptq", **{"quantize.symmetric": True}),
    Scheme(
        "W4A16", "w4-gptq", "4-bit integers, symmetric, groups of 128", aliases=("int4", "gptq", "gptq-4bit")
    ),
    Scheme("W4A16_ASYM", "w4-gptq-asym", "4-bit integers with zero points, groups of 128"),
    *(_packed(bits, "w4-gptq", **{"quantize.bits": bits}) for bits in (5, 6, 7)),
    Scheme("W8A16", "w8", "8-bit integers, symmetric, groups of 128", {"quantize.group_size": "auto"}),
    Scheme(
        "INT8",
        "w8a8",
        "8-bit integers by output channel, inputs rounded to 8 bits by token",
        aliases=("w8a8-int8",),
    ),
    *(_rounded(bits, 8) for bits in (2, 3, 5, 6, 7)),
    *(_rounded(bits, 4) for bits in (2, 3, 4)),
    Scheme(
        "W4AFP8",
        "w4a8",
        "4-bit integers in groups of 128, inputs rounded to 8-bit floats by token",
        {"activations.type": "float"},
    ),
    Scheme(
        "FP8",
        "fp8-dynamic",
        "8-bit floats, inputs rounded to 8-bit floats by fixed scales",
        {"quantize.group_size": "tensor", "activations.strategy": "tensor", "activations.dynamic": False},
        aliases=("float8", "fp8-static"),
    ),
    Scheme("MXFP8A16", "mxfp8", "8-bit floats in groups of 32", {"activations": None}),
    Scheme(
        "AWQ", "w4-awq", "4-bit integers, symmetric, groups of 128, by AWQ's scales", aliases=("awq-4bit",)
    ),
    Scheme("HQQ", "w4-hqq", "4-bit integers, symmetric, groups of 128, without data"),
    Scheme("RTN", "w4-rtn", "4-bit integers, symmetric, groups of 128, rounded to nearest"),
    Scheme("bnb-4bit", "nf4", "NF4 of bitsandbytes", aliases=("bitsandbytes", "bnb-nf4", "qlora")),
    Scheme("2:4", "sparse24-awp", "two of every four weights zero", aliases=("24-sparse", "sparse24")),
    Scheme("SparseGPT", "sparse50-sparsegpt", "half of the weights zero, by SparseGPT"),
    Scheme("Wanda", "sparse50-wanda", "half of the weights zero, by Wanda"),
    Scheme("SVD-LLM", "lowrank80-svdllm", "two factors of 80% of the parameters"),
    _gguf("Q3_K_S", "q3_k_m", "quantize.mix", value="s"),
    _gguf("Q3_K_L", "q3_k_m", "quantize.mix", value="l"),
    _gguf("Q4_1", "q4_0", *_BLOCKS, value="q4_1"),
    _gguf("Q4_K_S", "q4_k_m", "quantize.mix", value="s"),
    _gguf("Q5_0", "q4_0", *_BLOCKS, value="q5_0"),
    _gguf("Q5_1", "q4_0", *_BLOCKS, value="q5_1"),
    _gguf("Q5_K_S", "q5_k_m", "quantize.mix", value="s"),
    _gguf("IQ4_NL", "q4_0", *_BLOCKS, value="iq4_nl"),
    _gguf("IQ4_XS", "q4_0", *_BLOCKS, value="iq4_xs"),
)
"""Every scheme besides the recipes, whose names are schemes too (``Q4_K_M``, ``NF4``)."""

ELSEWHERE: tuple[Elsewhere, ...] = (
    Elsewhere("MXFP4XFP8", "4-bit floats in groups of 32, inputs in 8-bit floats", "W4A16"),
    Elsewhere("MXFP6A8", "6-bit floats in groups of 32, inputs in 8-bit floats", "W6A16"),
    Elsewhere("MXFP6A16", "6-bit floats in groups of 32", "W6A16", ("mxfp6",)),
    *(
        Elsewhere(f"W{bits}A{inputs}", f"{bits}-bit integers, inputs rounded to {inputs} bits", f"W{bits}A16")
        for bits, inputs in ((5, 4), (6, 4), (7, 4))
    ),
    Elsewhere(
        "bnb-8bit", "the 8-bit integers of bitsandbytes (LLM.int8)", "W8A8", ("llm.int8", "load-in-8bit")
    ),
    Elsewhere("bnb-fp4", "the 4-bit floats of bitsandbytes", "bnb-4bit", ("fp4",)),
    Elsewhere("EXL2", "ExLlama's integers of mixed widths", "W4A16", ("exl3",)),
    Elsewhere("AQLM", "sums of codebooks", "w2-gptq", ("quip", "quip#", "vptq")),
    Elsewhere("IQ3_XXS", "llama.cpp's codebooks of three bits", "q3_k_m", ("iq3_xs", "iq3_s", "iq3_m")),
    Elsewhere(
        "IQ2_XXS", "llama.cpp's codebooks of two bits", "q2_k", ("iq2_xs", "iq2_s", "iq2_m", "iq1_s", "iq1_m")
    ),
    Elsewhere("TQ2_0", "llama.cpp's ternary types", "q2_k", ("tq1_0",)),
)
"""Schemes that are asked for by name and not written here."""


def plain(name: str) -> str:
    """A name without case, dashes, underscores and blanks."""
    return "".join(c for c in name.casefold() if c not in "-_ ")


def find_scheme(name: str) -> Scheme | None:
    """The scheme of that name, or ``None``."""
    return next((scheme for scheme in SCHEMES if plain(name) in _names(scheme)), None)


def find_elsewhere(name: str) -> Elsewhere | None:
    """The scheme of that name that other tools write, or ``None``."""
    return next((scheme for scheme in ELSEWHERE if plain(name) in _names(scheme)), None)


def nearest_scheme(name: str) -> str | None:
    """The scheme whose name is spelt most like ``name``, or ``None`` where none is."""
    names = {plain(word): scheme.name for scheme in SCHEMES for word in (scheme.name, *scheme.aliases)}
    close = difflib.get_close_matches(plain(name), names, n=1, cutoff=0.6)
    return names[close[0]] if close else None


def _names(scheme: Scheme | Elsewhere) -> set[str]:
    return {plain(word) for word in (scheme.name, *scheme.aliases)}
