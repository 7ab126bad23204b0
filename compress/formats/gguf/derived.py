"""Settings that a configuration implies: what families say in different words, said in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DERIVED_FFN = "derived.ffn"
"""Neurons of the FFN; four times the hidden size where nothing is said."""
DERIVED_GROUPS = "derived.groups"
"""Key and value heads."""
DERIVED_HEAD = "derived.head"
"""Elements of a head."""
DERIVED_LOCAL_BASE = "derived.local_base"
"""The rotary base of layers with a sliding window, where they have one of their own."""
DERIVED_QUERIES = "derived.queries"
"""Query heads for each key and value head."""
DERIVED_QUERY_SCALE = "derived.query_scale"
"""Whether queries are scaled by the size of a head, or by the hidden size over the heads."""
DERIVED_ROTATED = "derived.rotated"
"""Elements of a head that are rotated."""
DERIVED_WITHIN_WINDOW = "derived.within_window"
"""Tokens up to which a model with a sliding window computes what it would without."""
DERIVED_WINDOWS = "derived.windows"
"""Every how many-th layer sees the whole context; ``None`` where the layers follow no such rule."""


def with_derived(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with the derived settings added."""
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    head = int(config.get("head_dim") or hidden // heads)
    groups = _groups(config, heads)
    widths = (config.get(key) for key in ("intermediate_size", "ffn_hidden_size", "n_inner"))
    found: dict[str, Any] = {
        DERIVED_FFN: next((int(width) for width in widths if width), 4 * hidden),
        DERIVED_GROUPS: groups,
        DERIVED_HEAD: head,
        DERIVED_QUERIES: heads // groups,
        DERIVED_ROTATED: int(head * _rotated(config)),
        DERIVED_LOCAL_BASE: _local_base(config),
    }
    if (scalar := config.get("query_pre_attn_scalar")) is not None:
        found[DERIVED_QUERY_SCALE] = scalar in (head, hidden // heads)
    if layers := config.get("layer_types"):
        found[DERIVED_WINDOWS] = _period(layers)
    lengths = [config.get("max_position_embeddings"), config.get("sliding_window")]
    found[DERIVED_WITHIN_WINDOW] = min((int(length) for length in lengths if length), default=None)
    return {**config, **{key: value for key, value in found.items() if value is not None}}


def _groups(config: Mapping[str, Any], heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return int(config.get("num_key_value_heads") or config.get("num_kv_heads") or heads)


def _rotated(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    places = (
        rope.get("partial_rotary_factor"),
        config.get("partial_rotary_factor"),
        config.get("rotary_pct"),
    )
    return float(next((share for share in places if share is not None), 1.0))


def _local_base(config: Mapping[str, Any]) -> float | None:
    local = (config.get("rope_parameters") or {}).get("sliding_attention")
    base = local.get("rope_theta") if isinstance(local, Mapping) else config.get("rope_local_base_freq")
    return None if base is None else float(base)


def _period(layers: list[str]) -> int | str:
    """Every how many-th layer has full attention; a word where that is no rule."""
    full = [index for index, kind in enumerate(layers) if kind == "full_attention"]
    for period in range(1, len(layers) + 2):
        if full == [index for index in range(len(layers)) if (index + 1) % period == 0]:
            return period
    return "irregular"
