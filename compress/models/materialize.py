"""A whole model with its weights, for evaluation, loaded in the very way in which it is compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from compress.checkpoint.source import Source
from compress.models.skeleton import Decode, Skeleton


def load_dense(
    source: Source,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    decode: Decode | None = None,
    supplied: Mapping[str, Sequence[int]] | None = None,
) -> PreTrainedModel:
    """The model of a source with real weights, in evaluation mode, nothing requiring a gradient.

    decode: gives the weight `[out, in]` of a view by its name, or None to read it from disk. supplied: the
    views, by name with their shapes, that are not on disk in the clear, so that only `decode` can give
    them.
    Raises: `UserError` as `Skeleton.open_skeleton`.
    """
    skeleton = Skeleton.open_skeleton(source, supplied=supplied, decode=decode)
    skeleton.load_rest(device=device, dtype=dtype, head=True)
    for index in range(len(skeleton.blocks)):
        skeleton.load_block(index, device=device, dtype=dtype)
    if (source.path / "generation_config.json").is_file() and skeleton.model.can_generate():
        skeleton.model.generation_config = GenerationConfig.from_pretrained(source.path)
    return skeleton.model
