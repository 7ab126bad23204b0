"""Which type each tensor has in llama.cpp's mixed files (``Q4_K_M`` and the like), as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress.formats.base import Facts

from .placement import place

Layers = Callable[[int, int], bool]
"""``(layer, number of layers) → whether a rule holds there``."""


@dataclass(frozen=True)
class Rule:
    """Tensors by a regular expression on their GGUF names, the type that they get, and in which layers."""

    pattern: str
    type: str
    layers: Layers = lambda layer, count: True


def _more_bits(layer: int, count: int) -> bool:
    """The first and the last eighth, and every third layer in between."""
    return layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2


def _first(share: int) -> Layers:
    return lambda layer, count: layer < count // share


def _below(limit: int) -> Layers:
    return lambda layer, count: layer < limit


_OUTPUT = "output"
"""Stands for the head: its own tensor, or the embeddings where it is tied to them."""
_VALUE, _DOWN, _JOIN, _FUSED = (
    r".*\.attn_v\.",
    r".*\.ffn_down(_exps)?\.",
    r".*\.attn_output\.",
    r".*\.attn_qkv\.",
)

MIXES: Mapping[tuple[str, str], tuple[Rule, ...]] = {
    ("q2_k", "m"): (
        Rule(_OUTPUT, "q6_k"),
        Rule(_VALUE, "q3_k"),
        Rule(_DOWN, "q3_k"),
        Rule(_JOIN, "q3_k"),
    ),
    ("q3_k", "m"): (
        Rule(_OUTPUT, "q6_k"),
        Rule(_VALUE, "q5_k", _below(2)),
        Rule(_VALUE, "q4_k"),
        Rule(_DOWN, "q5_k", _first(16)),
        Rule(_DOWN, "q4_k"),
        Rule(_JOIN, "q4_k"),
        Rule(_FUSED, "q4_k"),
    ),
    ("q3_k", "l"): (
        Rule(_OUTPUT, "q6_k"),
        Rule(_VALUE, "q5_k"),
        Rule(_DOWN, "q5_k"),
        Rule(_JOIN, "q5_k"),
        Rule(_FUSED, "q4_k"),
    ),
    ("q3_k", "s"): (Rule(_OUTPUT, "q6_k"),),
    ("q4_k", "s"): (
        Rule(_OUTPUT, "q6_k"),
        Rule(_VALUE, "q5_k", _below(4)),
        Rule(_DOWN, "q5_k", _first(8)),
    ),
    ("q4_k", "m"): (
        Rule(_OUTPUT, "q6_k"),
        Rule(_VALUE, "q6_k", _more_bits),
        Rule(_DOWN, "q6_k", _more_bits),
        Rule(_FUSED, "q5_k"),
    ),
    ("q5_k", "s"): (Rule(_OUTPUT, "q6_k"),),
    ("q5_k", "m"): (
        Rule(_OUTPUT, "q6_k"),
        Rule(_VALUE, "q6_k", _more_bits),
        Rule(_DOWN, "q6_k", _more_bits),
        Rule(_FUSED, "q6_k"),
    ),
}
"""Main type and size of the mix → its rules; the first that matches holds, and all else has the main type."""


def mixed_types(facts: Facts, main: str, mix: str) -> dict[str, str]:
    """Weight → its type in a mix.

    Raises:
        UserError: GGUF does not have the architecture.
    """
    placement = place(facts)
    count = 1 + max((view.block for view in facts.views if view.block is not None), default=0)
    head = "output.weight" if "output.weight" in placement.views else "token_embd.weight"
    found: dict[str, str] = {}
    for name, views in placement.views.items():
        layer = views[0].block
        chosen = _type(MIXES[main, mix], main, _OUTPUT if name == head else name, layer, count)
        found |= {view.name: chosen for view in views}
    return found


def _type(rules: tuple[Rule, ...], main: str, name: str, layer: int | None, count: int) -> str:
    for rule in rules:
        if re.fullmatch(rule.pattern + ".*", name) and rule.layers(0 if layer is None else layer, count):
            return rule.type
    return main
