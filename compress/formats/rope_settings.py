"""Rotary settings under the names that programs other than transformers 5 read.

transformers 5 keeps them in ``rope_parameters``. mlx_lm (0.32) looks for ``rope_theta``, ``rope_scaling`` and
``partial_rotary_factor`` beside it in most of its models, and goes on with defaults where they are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LOCAL = "sliding_attention"
_GLOBAL = "full_attention"


def older_rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that ``config`` lacks, those of a text part inside it included; what it has stays as it is."""
    found = {key: value for key, value in _of(config).items() if key not in config}
    text = config.get("text_config")
    if isinstance(text, Mapping) and (inside := older_rope_settings(text)):
        found["text_config"] = {**text, **inside}
    return found


def _of(config: Mapping[str, Any]) -> dict[str, Any]:
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return {}
    local, whole = parameters.get(_LOCAL), parameters.get(_GLOBAL)
    if isinstance(whole, Mapping):
        theta = local.get("rope_theta") if isinstance(local, Mapping) else None
        return {**_flat(whole), **({} if theta is None else {"rope_local_base_freq": theta})}
    return _flat(parameters)


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}
    if parameters.get("rope_type", "default") == "default":
        return named
    return {**named, "rope_scaling": {key: value for key, value in parameters.items() if key not in named}}
