"""Which reader a quantized checkpoint needs, by what its configuration says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from compress.checkpoint import files as disk_files
from compress.checkpoint.quantized.awq import read_awq
from compress.checkpoint.quantized.bitsandbytes import read_bitsandbytes
from compress.checkpoint.quantized.compressed_tensors import read_compressed_tensors
from compress.checkpoint.quantized.float8 import read_float8
from compress.checkpoint.quantized.gptq import read_gptq
from compress.checkpoint.quantized.microscaled import read_mxfp4
from compress.checkpoint.quantized.mlx import read_mlx
from compress.checkpoint.quantized.modelopt import read_modelopt
from compress.checkpoint.quantized.overlay import Reading, dense_dtype, overlay
from compress.checkpoint.source import Source
from compress.errors import UserError

Reader = Callable[[Source, Mapping[str, Any]], Reading]

READERS: Mapping[str, Reader] = {
    "awq": read_awq,
    "bitsandbytes": read_bitsandbytes,
    "compressed-tensors": read_compressed_tensors,
    "fbgemm_fp8": read_float8,
    "fp8": read_float8,
    "gptq": read_gptq,
    "mlx": read_mlx,
    "modelopt": read_modelopt,
    "mxfp4": read_mxfp4,
    "mxfp8": read_float8,
}
NATIVE = "compress"
OUT_IN = frozenset({"awq", "bitsandbytes", "gptq", "mlx"})
"""Methods that store every matrix ``[out, in]``, also for modules that keep theirs the other way round."""
_OLDER_FILES = {
    "quantize_config.json": ("gptq", ".qweight"),
    "quant_config.json": ("awq", ".qweight"),
    "hf_quant_config.json": ("modelopt", ".weight_scale"),
}
"""Where programs wrote their settings before ``config.json`` had a place for them, what they are of, and how the names of their
tensors end."""


def quantization_of(source: Source) -> Mapping[str, Any] | None:
    """What the checkpoint says of its quantization, in ``config.json`` or a file beside it; ``None`` if it says nothing.

    Raises:
        UserError: it is said in a way that cannot be read.
    """
    parts = [
        value for key, value in source.config.items() if key.endswith("_config") and isinstance(value, dict)
    ]
    for config in (source.config, *parts):
        said = config.get("quantization_config") or config.get("compression_config")
        said = said or config.get("quantization")
        if isinstance(said, dict):
            return said
        if said:
            raise UserError(f"{source.path / 'config.json'}: quantization_config is {said!r}, not an object.")
    for name, (method, end) in _OLDER_FILES.items():
        if (source.path / name).is_file() and any(tensor.endswith(end) for tensor in source.headers):
            return {"quant_method": method, **disk_files.read_json(source.path, name, source.real_root)}
    return None


def decode_source(source: Source, config: Mapping[str, Any]) -> Source:
    """A checkpoint that was quantized by another program, as the dense one that its values are.

    Raises:
        UserError: a form that is not read here, or one that its tensors do not fit.
    """
    method = method_of(config)
    if method not in READERS:
        known = ", ".join(sorted((*READERS, NATIVE)))
        raise UserError(
            f"{source.path} is quantized by '{method}', which is not read here ({known} are): give the original checkpoint."
        )
    reading = READERS[method](source, config)
    if not reading.tensors:
        raise UserError(f"{source.path / 'config.json'} says '{method}', but no tensor is stored that way.")
    scales = [part for tensor in reading.tensors.values() for part in tensor.parts[1:2]]
    return overlay(source, reading, dense_dtype(source, scales))


def method_of(config: Mapping[str, Any]) -> str:
    """The name of the reader: some programs have several methods write into one layout."""
    method = str(config.get("quant_method", "")).lower()
    if method in ("auto-round", "intel/auto-round"):
        packing = str(config.get("packing_format", "auto_round:auto_gptq"))
        return "awq" if packing.endswith("awq") else "gptq" if packing.endswith("gptq") else method
    if not method and {"bits", "group_size"} <= config.keys():
        return "mlx"  # which names no method
    if not method and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        return "bitsandbytes"
    if method.startswith("modelopt"):
        return "modelopt"  # which vLLM calls by other names for each of its algorithms
    return method or json.dumps(sorted(config))
