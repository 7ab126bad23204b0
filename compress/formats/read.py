"""What ``config.json`` says of packed weights: which there are, in what layout, under which tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compress_kernels.activations import ActivationScheme
from torch import Tensor

from compress.checkpoint.quantized.read import method_of, quantization_of
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.awq import read_awq_packed
from compress.formats.bitsandbytes import read_bitsandbytes
from compress.formats.compressed_tensors_read import read_compressed_tensors
from compress.formats.fp8 import read_fp8_packed
from compress.formats.gguf.read import read_gguf
from compress.formats.gptq import read_gptq_packed
from compress.formats.input_activations import scheme_of
from compress.formats.mlx import read_mlx_packed
from compress.formats.modelopt import modelopt_cache, read_modelopt_packed
from compress.formats.native import read_native
from compress.formats.packed_weight import PackedWeight


def packed_weights(source: Source) -> dict[str, PackedWeight]:
    """Name → packed weight of a checkpoint; empty for a dense one.

    Raises:
        UserError: a quantization that this version does not read, named, or tensors that do not fit what it says.
    """
    config = None if source.stored_as else quantization_of(source)
    if not config:
        return {}
    try:
        return _packed_weights(source, config)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            f"{source.path}: its tensors do not fit the quantization that config.json describes "
            f"({type(error).__name__}: {str(error)[:100]}); the checkpoint is damaged"
        ) from error


def cache_scheme(source: Source) -> ActivationScheme | None:
    """How a checkpoint wants keys and values stored; None where it leaves that to the server.

    Raises:
        UserError: a scheme that is not read here.
    """
    config = source.config.get("quantization_config") or {}
    try:
        if config.get("quant_method") == "compress":
            data = config.get("kv_cache")
            return None if data is None else ActivationScheme.from_json(data)
        if config.get("quant_method") == "compressed-tensors":
            return scheme_of(config.get("kv_cache_scheme"))
        if config and method_of(config) == "modelopt":
            return modelopt_cache(config)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{source.path / 'config.json'}: its key-value cache is not read here: {error}"
        ) from error
    return None


def _packed_weights(source: Source, config: Any) -> dict[str, PackedWeight]:
    method = method_of(config)
    if method == "compress":
        return read_native(source, config)
    if method == "compressed-tensors":
        return read_compressed_tensors(source, config)
    if method == "bitsandbytes":
        return read_bitsandbytes(source)
    if method == "gguf":
        return read_gguf(source, config)
    if method == "gptq":
        return read_gptq_packed(source, config)
    if method == "awq":
        return read_awq_packed(source, config)
    if method == "mlx":
        return read_mlx_packed(source, config)
    if method == "fp8":
        return read_fp8_packed(source, config)
    if method == "modelopt":
        return read_modelopt_packed(source, config)
    raise UserError(
        f"{source.path} is quantized by '{method}', whose weights are not read packed: compressed-tensors, bitsandbytes (NF4), "
        "GGUF, GPTQ, AWQ, MLX, fp8, ModelOpt, native and dense are"
    )


def decoder(source: Source, packed: Mapping[str, PackedWeight], dtype: torch.dtype) -> Any:
    """What :class:`~compress.models.skeleton.Skeleton` asks for a weight by name: the dense one, or ``None``."""

    def decode(name: str) -> Tensor | None:
        weight = packed.get(name)
        return None if weight is None else weight.decode(source, dtype)

    return decode
