"""A checkpoint as a running model, its linears kept packed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from compress_kernels.ops.dispatch import AUTO
from compress_kernels.ops.sparse_matmul import remade
from compress_kernels.pages import HugePages
from transformers import GenerationConfig, PreTrainedModel

from compress.assets import EMBEDDED, embedded_model
from compress.checkpoint.integrity import check_hashes, check_sizes
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.dense_source import dense_source, open_any, stays_packed
from compress.formats.packed_weight import PackedWeight
from compress.formats.read import decoder, packed_weights
from compress.models.skeleton import Skeleton, open_skeleton
from compress.runtime.rounding import round_caches, round_decoded
from compress.runtime.swap import prepare, set_compute_dtype, stand_ins, swap, swap_dense, tell_decoded
from compress.system.device import DTYPES, dtype_name, resolve_device
from compress.system.monitor import return_free_memory

_LOG = logging.getLogger(__name__)

DeviceMap = Mapping[str, Any] | str | int | torch.device


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "auto",
    device_map: DeviceMap | None = None,
    trust_remote_code: bool = False,
    check: bool = False,
) -> PreTrainedModel:
    """A dense, compressed-tensors or native checkpoint as a model in evaluation mode.

    Linear layers, experts and embeddings stay packed (:mod:`compress_kernels.modules`); what cannot run packed is decoded to
    ``dtype``, with a line in the log. Nothing requires a gradient.

    Args:
        path: a folder, a hub name, ``"embedded"`` or a GGUF file.
        dtype: what it computes in, torch's or its name; the model's own if ``None``.
        device: ``"auto"`` is the first GPU if there is one.
        device_map: in the place of ``device``: a device, or module → device as transformers takes it. The modules of several
            devices are loaded on the CPU and then placed by accelerate.
        trust_remote_code: run Python code that comes with the checkpoint.
        check: also hold every tensor against the hashes of ``compress.json``; sizes and shapes are checked always.

    Raises:
        UserError: the checkpoint is damaged, incomplete or of a form that is not read here.
    """
    folder = embedded_model() if str(path) == EMBEDDED else path
    source = open_any(folder, trust_remote_code=trust_remote_code)
    check_sizes(source)
    if check:
        check_hashes(source)
    name = dtype_name(dtype)
    wanted = None if name == "auto" else DTYPES[name]
    places_of = (
        device_map if isinstance(device_map, Mapping) and len({*map(str, device_map.values())}) > 1 else None
    )
    target = _one_device(device, device_map) if places_of is None else torch.device("cpu")
    skeleton, packed = open_compressed(source, wanted)
    compute = wanted or skeleton.dtype
    places = swap(skeleton.model, skeleton.block_views(None), packed, put=skeleton.put_module)
    with stand_ins(skeleton.model):
        skeleton.load_rest(device=target, dtype=compute, head=True)
    set_compute_dtype(skeleton.model, compute)
    pages = HugePages()
    _fill(skeleton, packed, places, target, compute, pages)
    round_decoded(skeleton.model, skeleton.block_views(None), packed, places, source)
    for index in range(len(skeleton.blocks)):
        _LOG.info("loading block %d of %d", index + 1, len(skeleton.blocks))
        load_block(skeleton, packed, index, device=target, dtype=compute, pages=pages)
    model = skeleton.model
    _tell_decoded(skeleton, packed, compute)
    if packed:
        swap_dense(model)
    if (source.path / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = _generation_config(source)
    return_free_memory()  # what the last order of the weights was made in, up to the size of the head
    return model.eval() if places_of is None else _dispatched(model.eval(), places_of)


def _one_device(device: torch.device | str, device_map: DeviceMap | None) -> torch.device:
    """The device of the whole model.

    Raises:
        UserError: a device map of another kind.
    """
    if device_map is None:
        return resolve_device(device)
    if isinstance(device_map, Mapping):
        found = next(iter(device_map.values()), "auto")
        return resolve_device(f"cuda:{found}" if isinstance(found, int) else found)
    if isinstance(device_map, str | torch.device | int):
        return resolve_device(f"cuda:{device_map}" if isinstance(device_map, int) else device_map)
    raise UserError(
        f"device_map is a device or a mapping of modules to devices, not {type(device_map).__name__}"
    )


def _dispatched(model: PreTrainedModel, places: Mapping[str, Any]) -> PreTrainedModel:
    for place in {str(one): one for one in places.values()}.values():
        resolve_device(f"cuda:{place}" if isinstance(place, int) else place)
    try:
        placed: PreTrainedModel = dispatch_model(model, device_map=dict(places))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the model cannot be placed by this device_map: {str(error).splitlines()[0][:200]}"
        ) from error
    return placed


def _generation_config(source: Source) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(source.path)
    except Exception as error:  # whatever transformers makes of a damaged file
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(
            f"{source.path / 'generation_config.json'} cannot be read ({reason[:200]}): copy it again or remove it"
        ) from error


def open_compressed(
    source: Source, dtype: torch.dtype | None = None
) -> tuple[Skeleton, Mapping[str, PackedWeight]]:
    """The skeleton of a checkpoint, compressed or not, and its packed weights by name.

    Weights in a form that no layout here computes with (FP8, GPTQ, …) are decoded, and the checkpoint is run as a dense one.
    """
    if not stays_packed(source):
        source = dense_source(source)
    packed = packed_weights(source)
    shapes = {name: weight.shape for name, weight in packed.items()}
    decode = decoder(source, packed, dtype or torch.float32)
    return open_skeleton(source, supplied=shapes, decode=decode), packed


def load_block(
    skeleton: Skeleton,
    packed: Mapping[str, PackedWeight],
    index: int,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    backend: str = AUTO,
    pages: HugePages | None = None,
) -> None:
    """Load one block, modules that keep their weights packed in place of dense ones.

    ``backend`` is who multiplies; ``pages`` is where the packed weights of several blocks go together.
    """
    views = skeleton.block_views(index)
    places = swap(skeleton.model, views, packed, put=skeleton.put_module, backend=backend)
    skeleton.load_block(index, device=device, dtype=dtype)
    round_decoded(skeleton.model, views, packed, places, skeleton.source)
    round_caches(skeleton, index, skeleton.source)
    _fill(skeleton, packed, places, device, dtype, pages or HugePages())


def _fill(
    skeleton: Skeleton,
    packed: Mapping[str, PackedWeight],
    places: Mapping[str, str],
    device: torch.device | str,
    dtype: torch.dtype,
    pages: HugePages,
) -> None:
    """Give every packed module its tensors, in memory of their own: a file may go while the model runs."""
    place_of = torch.device(device)
    for name, place in places.items():
        module: Any = skeleton.model.get_submodule(place)
        module.compute_dtype = dtype
        for suffix, tensor in packed[name].tensors(skeleton.source).items():
            # What is made anew for the kernels goes: it would leave holes.
            stays = place_of.type == "cpu" and suffix not in remade(module.layout)
            setattr(module, suffix, pages.copy(tensor) if stays else tensor.to(place_of, copy=True))
        module.room = pages.copy
        prepare(module, f"{skeleton.source.path}: {name}")
        module.room = None


def _tell_decoded(skeleton: Skeleton, packed: Mapping[str, PackedWeight], dtype: torch.dtype) -> None:
    names = dict(skeleton.model.named_parameters(remove_duplicate=False))
    decoded = [view for view in skeleton.views if view.name in packed and view.parameter in names]
    nbytes = sum(view.shape[0] * view.shape[1] * dtype.itemsize for view in decoded)
    tell_decoded([view.name for view in decoded], nbytes)
