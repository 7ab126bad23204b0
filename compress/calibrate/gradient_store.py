"""Moments of the gradients of all blocks, one file for each, which other runs over the same model and data can take over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.calibrate.gradients import BlockGradients, backward
from compress.calibrate.kfac import gradient_statistics
from compress.calibrate.walk import loaded_blocks
from compress.models.skeleton import Skeleton
from compress.score.statistics import Statistics

BlockMoments = Iterator[tuple[int, dict[str, Statistics]]]
"""Block index, and view name → the moments of its gradients."""

_KEPT = (
    "squared_gradient",
    "gradient_rows",
    "fisher_left",
    "fisher_right",
    "output_gradient_gram",
    "dense_gram",
)


def block_file(folder: Path, block: int) -> Path:
    """Where the moments of a block lie: tensors by weight and moment, ``NAME/moment``."""
    return folder / f"{block}.safetensors"


@contextmanager
def gradient_moments(
    skeleton: Skeleton,
    tokens: Tensor,
    needs: Mapping[str, frozenset[str]],
    *,
    device: torch.device,
    seed: int,
    folder: Path,
    keep: Path | None = None,
) -> Iterator[BlockMoments]:
    """Gradient moments by block of the dense model, from the last to the first; each block is loaded in fp32 meanwhile.

    Args:
        skeleton: the model; no block may be loaded.
        tokens: int64 ``[samples, length]``.
        needs: view name → which moments.
        device: where they are computed.
        seed: for the labels.
        folder: every block's moments are written there (:func:`block_file`).
        keep: moments of an earlier call with the same model, tokens, needs and seed are read from this folder, and those
            that are not there yet are left there once all blocks are done.

    Raises:
        UserError: gradients that are not finite, or a model that cannot be run block by block.
    """
    kept = None if keep is None else keep / _key(skeleton, tokens, needs, seed)
    if kept is not None and kept.is_dir():
        last_to_first = range(len(skeleton.blocks) - 1, -1, -1)
        with loaded_blocks(skeleton, last_to_first, device=device, dtype=torch.float32) as indices:
            yield ((index, _taken_over(kept, folder, index, needs, device)) for index in indices)
        return
    with backward(
        skeleton, tokens, device=device, dtype=torch.float32, seed=seed, spill_dir=folder
    ) as blocks:
        yield _computed(skeleton, blocks, needs, folder, kept)


def _computed(
    skeleton: Skeleton,
    blocks: Iterator[BlockGradients],
    needs: Mapping[str, frozenset[str]],
    folder: Path,
    kept: Path | None,
) -> BlockMoments:
    for block in blocks:
        moments = gradient_statistics(block, skeleton.block_views(block.index), needs)
        save_file(_tensors(moments), str(block_file(folder, block.index)))
        yield block.index, moments
    if kept is not None:
        _keep(folder, kept, len(skeleton.blocks))


def _keep(folder: Path, kept: Path, blocks: int) -> None:
    """Copy all blocks' files, so that ``kept`` is complete from the moment when it is there."""
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.mkdir(parents=True)
    for index in range(blocks):
        shutil.copyfile(block_file(folder, index), block_file(partial, index))
    partial.rename(kept)


def _taken_over(
    kept: Path, folder: Path, index: int, needs: Mapping[str, frozenset[str]], device: torch.device
) -> dict[str, Statistics]:
    shutil.copyfile(block_file(kept, index), block_file(folder, index))
    return _load(block_file(folder, index), needs, device)


def _key(skeleton: Skeleton, tokens: Tensor, needs: Mapping[str, frozenset[str]], seed: int) -> str:
    source = skeleton.source
    files = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in source.files}
    wanted = {name: sorted(moments) for name, moments in sorted(needs.items())}
    edits = {"dropped": source.dropped, "width_pruned": source.width_pruned}
    parts = json.dumps([source.config, files, edits, wanted, seed], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode() + tokens.numpy().tobytes()).hexdigest()[:32]


def _tensors(moments: Mapping[str, Statistics]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, statistics in moments.items():
        for key in _KEPT:
            value = getattr(statistics, key)
            if value is not None:
                tensors[f"{name}/{key}"] = value.contiguous().cpu()
    return tensors


def _load(path: Path, needs: Mapping[str, frozenset[str]], device: torch.device) -> dict[str, Statistics]:
    fields: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(str(path), device=str(device)).items():
        name, _, moment = key.rpartition("/")
        fields.setdefault(name, {})[moment] = tensor
    # Gradients were seen in any case: one token stands for them.
    return {name: Statistics(1, **moments) for name, moments in fields.items() if needs.get(name)}
