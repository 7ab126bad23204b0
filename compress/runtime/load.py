"""A checkpoint as a running model, its linears kept packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from compress_kernels.dispatch import AUTO
from compress_kernels.modules import PackedLinear
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from compress.checkpoint.source import Source, open_source
from compress.embedded import EMBEDDED, embedded_model
from compress.models.skeleton import Skeleton, open_skeleton
from compress.runtime.device import resolve_device
from compress.runtime.packed import PackedWeight, decoder, packed_weights


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A dense, compressed-tensors or native checkpoint as a model in evaluation mode.

    Linear layers stay packed, as :class:`compress_kernels.modules.PackedLinear`; packed experts, transposed linears and
    embeddings are decoded to ``dtype``. Nothing requires a gradient.

    Args:
        path: a folder, a hub name or ``"embedded"``.
        dtype: what it computes in; the model's own if ``None``.
        device: ``"auto"`` is the first GPU if there is one.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        UserError: the checkpoint is damaged, incomplete or of a form that is not read here.
    """
    folder = embedded_model() if str(path) == EMBEDDED else path
    source = open_source(folder, trust_remote_code=trust_remote_code)
    target = resolve_device(device)
    skeleton, packed = open_compressed(source, dtype)
    compute = dtype or skeleton.model.dtype
    skeleton.load_rest(device=target, dtype=compute, head=True)
    for index in range(len(skeleton.blocks)):
        load_block(skeleton, packed, index, device=target, dtype=compute)
    model = skeleton.model
    if (source.path / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(source.path)
    return model.eval()


def open_compressed(
    source: Source, dtype: torch.dtype | None = None
) -> tuple[Skeleton, Mapping[str, PackedWeight]]:
    """The skeleton of a checkpoint, compressed or not, and its packed weights by name."""
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
) -> None:
    """Load one block with its packed linears in place of dense ones; ``backend`` is who multiplies them."""
    skeleton.load_block(index, device=device, dtype=dtype)
    for view in skeleton.block_views(index):
        weight = packed.get(view.name)
        module = skeleton.model.get_submodule(view.module)
        if weight is None or not isinstance(module, nn.Linear) or tuple(module.weight.shape) != weight.shape:
            continue
        tensors = {
            suffix: tensor.clone().to(device) for suffix, tensor in weight.tensors(skeleton.source).items()
        }
        bias = None if module.bias is None else module.bias.detach()
        owner, _, leaf = view.module.rpartition(".")
        setattr(
            skeleton.model.get_submodule(owner),
            leaf,
            PackedLinear(weight.layout, weight.shape, tensors, bias, backend=backend),
        )
