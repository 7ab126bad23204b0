"""Moments of the gradients of all blocks, one file for each, which other runs over the same model and data can take over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.calibrate.gradients import backward
from compress.calibrate.kfac import gradient_statistics
from compress.models.skeleton import Skeleton
from compress.score.statistics import Statistics

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


def gradient_moments(
    skeleton: Skeleton,
    tokens: Tensor,
    needs: Mapping[str, frozenset[str]],
    *,
    device: torch.device,
    seed: int,
    folder: Path,
    keep: Path | None = None,
) -> Iterator[tuple[int, dict[str, Statistics]]]:
    """Block by block of the dense model, each loaded in fp32 while its moments are yielded; they go to ``folder``, too.

    With ``keep`` what an earlier call of the same model, tokens, seed and needs left there is taken over, or left there.

    Raises:
        UserError: gradients that are not finite, or a model that they cannot be followed through.
    """
    kept = None if keep is None else keep / _key(skeleton, tokens, needs, seed)
    if kept is not None and kept.is_dir():
        for index in range(len(skeleton.blocks) - 1, -1, -1):
            shutil.copyfile(block_file(kept, index), block_file(folder, index))
            skeleton.load_block(index, device=device, dtype=torch.float32)
            yield index, _load(block_file(folder, index), needs, device)
            skeleton.release_block(index)
        return
    for block in backward(skeleton, tokens, device=device, dtype=torch.float32, seed=seed, spill_dir=folder):
        found = gradient_statistics(block, skeleton.block_views(block.index), needs)
        save_file(_tensors(found), str(block_file(folder, block.index)))
        yield block.index, found
    if kept is not None:
        beside = kept.with_suffix(f".{os.getpid()}")
        beside.mkdir(parents=True)
        for index in range(len(skeleton.blocks)):
            shutil.copyfile(block_file(folder, index), block_file(beside, index))
        beside.rename(kept)


def _key(skeleton: Skeleton, tokens: Tensor, needs: Mapping[str, frozenset[str]], seed: int) -> str:
    source = skeleton.source
    files = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in source.files}
    asked = {name: sorted(own) for name, own in sorted(needs.items())}
    edits = {"dropped": source.dropped, "width_pruned": source.width_pruned}
    parts = json.dumps([source.config, files, edits, asked, seed], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode() + tokens.numpy().tobytes()).hexdigest()[:32]


def _tensors(found: Mapping[str, Statistics]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, statistics in found.items():
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
    # The batches of gradients say that something was seen.
    return {name: Statistics(1, **own) for name, own in fields.items() if needs.get(name)}
