"""Any checkpoint as a dense source: what is quantized already is decoded tensor by tensor while it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from compress.assets import EMBEDDED, embedded_model
from compress.checkpoint.headers import TensorInfo
from compress.checkpoint.quantized.overlay import DenseTensor, Reading, dense_dtype, overlay
from compress.checkpoint.quantized.read import NATIVE, OUT_IN, decode_source, method_of, quantization_of
from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.formats import fp8, modelopt
from compress.formats.compressed_tensors_read import reads_packed
from compress.formats.gguf.foreign import foreign_gguf, open_foreign_gguf
from compress.formats.gguf.read import read_gguf
from compress.formats.gptq import has_runs_of_inputs
from compress.formats.native import read_native
from compress.formats.packed_weight import PackedWeight
from compress.models.build import build_on_meta
from compress.models.skeleton import Skeleton, open_skeleton
from compress.models.views import WeightView

OWN_FORMS = {NATIVE: read_native, "gguf": read_gguf}
"""Forms whose ``config.json`` lists every packed weight with its sources, and who reads that list."""


def open_dense(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Source:
    """Open a checkpoint, dense or quantized in any form that is read here, as a dense source; also the path of a GGUF file.

    Raises:
        UserError: it is damaged, or quantized in a form that is not read here.
    """
    return dense_source(open_any(name_or_path, trust_remote_code=trust_remote_code))


def open_any(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Source:
    """Open a checkpoint as it is stored; a GGUF file that another program wrote, as the dense checkpoint that its values are.

    ``"embedded"`` is the model that ships with the package.

    Raises:
        UserError: it is damaged or missing.
    """
    name_or_path = embedded_model() if str(name_or_path) == EMBEDDED else name_or_path
    if (file := foreign_gguf(name_or_path)) is not None:
        return open_foreign_gguf(file, trust_remote_code=trust_remote_code)
    return open_source(name_or_path, trust_remote_code=trust_remote_code)


def dense_source(source: Source) -> Source:
    """``source`` itself if it is dense; else the dense checkpoint that its values are, with the usual names, dtypes and shapes.

    Nothing is decoded before it is read, and nothing decoded is kept. ``stored_as`` tells the form on disk.

    Raises:
        UserError: a form that is not read here, or one that its tensors do not fit.
    """
    config = None if source.stored_as else quantization_of(source)
    if config is None:
        return source
    method = method_of(config)
    if method in OWN_FORMS:
        return _own(source, config, method)
    decoded = decode_source(source, config)
    return _turned(decoded) if method in OUT_IN else decoded


def stays_packed(source: Source) -> bool:
    """Whether `formats.read` reads the checkpoint's packed weights as they are; so for a dense checkpoint, too."""
    config = None if source.stored_as else quantization_of(source)
    if config is None or method_of(config) in OWN_FORMS:
        return True
    if method_of(config) == "gptq":
        return config.get("checkpoint_format", "gptq") in ("gptq", "gptq_v2") and has_runs_of_inputs(source)
    if method_of(config) == "awq":
        return str(config.get("version") or "gemm").lower() == "gemm" and config.get("bits", 4) == 4
    if method_of(config) == "mlx":
        return True
    if method_of(config) == "fp8":
        return fp8.reads_packed(source, config)
    if method_of(config) == "modelopt":
        return modelopt.reads_packed(source, config)
    if method_of(config) == "bitsandbytes":
        foreign = (".SCB", "__fp4", ".nested_absmax")
        return not any(name.endswith(foreign) for name in source.headers)
    return method_of(config) == "compressed-tensors" and reads_packed(source, config)


def _turned(source: Source) -> Source:
    """Decoded matrices ``[out, in]`` turned for the modules that keep theirs ``[in, out]``."""
    model = build_on_meta(source)
    modules = [name for name, module in model.named_modules() if isinstance(module, Conv1D)]
    if not modules:
        return source
    headers = {
        name: _transposed(info)
        if info.decode is not None and _is_one_of(name.removesuffix(".weight"), modules)
        else info
        for name, info in source.headers.items()
    }
    return replace(source, headers=headers)


def _is_one_of(name: str, modules: Iterable[str]) -> bool:
    return any(name == m or m.endswith(f".{name}") or name.endswith(f".{m}") for m in modules)


def _transposed(info: TensorInfo) -> TensorInfo:
    decode = info.decode
    assert decode is not None
    return replace(info, shape=info.shape[::-1], decode=lambda: decode().T.contiguous())


def _own(source: Source, config: Mapping[str, Any], method: str) -> Source:
    """A checkpoint in a form of our own: a tensor that holds one weight is decoded alone, one of several is put together."""
    packed = OWN_FORMS[method](source, config)
    skeleton = open_skeleton(source, supplied={name: weight.shape for name, weight in packed.items()})
    by_source: dict[str, list[str]] = {}
    for name in packed:
        for stored in config["weights"][name]["sources"]:
            by_source.setdefault(stored, []).append(name)
    views = {view.name: view for view in skeleton.views}
    tensors = {
        stored: _tensor(source, skeleton, stored, names, packed, views) for stored, names in by_source.items()
    }
    parts = {part for weight in packed.values() for part in weight.names.values()}
    kinds = sorted(
        {str(weight.layout.to_json().get("type", weight.layout.name)) for weight in packed.values()}
    )
    form = f"{'GGUF' if method == 'gguf' else 'the native form of compress'} ({', '.join(kinds)})"
    dense = overlay(source, Reading(form, tensors, frozenset(parts - tensors.keys())), dense_dtype(source))
    _check_whole(dense, [stored for stored, names in by_source.items() if len(names) > 1])
    return dense


def _tensor(
    source: Source,
    skeleton: Skeleton,
    stored: str,
    names: list[str],
    packed: Mapping[str, PackedWeight],
    views: Mapping[str, WeightView],
) -> DenseTensor:
    if unknown := [name for name in names if name not in views]:
        raise UserError(
            f"{source.path}: {unknown[0]} is packed, but the model of config.json has no such weight."
        )
    own = [views[name] for name in names]
    parameter = own[0].parameter
    shape = tuple(skeleton.model.state_dict()[parameter].shape)
    if len(own) == 1 and own[0].expert is None and own[0].shape in (shape, shape[::-1]):
        shape = own[0].shape[::-1] if own[0].transposed else own[0].shape
    elif {view.parameter for view in own} != {parameter} or sum(
        view.shape[0] * view.shape[1] for view in own
    ) != torch.Size(shape).numel():
        raise UserError(f"{source.path}: tensor {stored} is packed in parts that do not make up a parameter.")

    def decode(dtype: torch.dtype) -> Tensor:
        result = torch.empty(shape, dtype=dtype)
        for view in own:
            weight = packed[view.name]
            view.put(result, weight.decode(source, dtype))
        return result

    return DenseTensor(shape, (stored,), decode)


def _check_whole(source: Source, names: Iterable[str]) -> None:
    """What was put together as a parameter has to be that parameter on disk, too."""
    wanted = set(names)
    if not wanted:
        return
    skeleton = open_skeleton(source)
    whole = {
        piece.disk
        for pieces in skeleton.pieces.values()
        for piece in pieces
        if piece.whole and piece.dims == tuple(range(len(piece.box)))
    }
    if lost := sorted(wanted - whole):
        raise UserError(
            f"{source.path}: tensor {lost[0]} is packed in parts whose order on disk is not known."
        )
