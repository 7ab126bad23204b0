"""Activation schemes in the words of compressed-tensors: ``input_activations`` of a config group, and ``kv_cache_scheme``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress_kernels.activations import ActivationScheme


def arguments_of(scheme: ActivationScheme) -> dict[str, Any]:
    """The quantization arguments of a scheme."""
    arguments: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": scheme.type,
        "symmetric": scheme.symmetric,
        "strategy": scheme.strategy,
        "group_size": scheme.group_size,
        "dynamic": "local" if scheme.strategy == "tensor_group" else scheme.dynamic,
    }
    if scheme.strategy == "tensor_group":
        arguments["scale_dtype"] = "torch.float8_e4m3fn"
    if scheme.scale_type == "e8m0":
        arguments["scale_dtype"] = "torch.uint8"
    return arguments


def scheme_of(arguments: Mapping[str, Any] | None) -> ActivationScheme | None:
    """The scheme of quantization arguments; ``None`` where inputs are not rounded.

    Raises:
        ValueError: arguments that no server computes.
    """
    if not arguments:
        return None
    strategy, dynamic = arguments.get("strategy"), arguments.get("dynamic", False)
    group = arguments.get("group_size")
    group = group if isinstance(group, int) and group > 0 else None
    return ActivationScheme(
        bits=arguments.get("num_bits", 8),
        type=arguments.get("type", "int"),
        symmetric=arguments.get("symmetric", True),
        strategy=strategy or ("group" if group else "tensor"),
        group_size=group,
        dynamic=bool(dynamic),
        scale_type="e8m0" if str(arguments.get("scale_dtype")).endswith("uint8") else None,
    )
