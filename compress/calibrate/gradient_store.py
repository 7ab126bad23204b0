"""Moments of the gradients of all blocks, one file for each, which other runs over the same model and data can take over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.calibrate.gradient_shares import Gather, Shared, alone
from compress.calibrate.gradients import BlockGradients, Labels, backward, gradient_windows
from compress.calibrate.kfac import block_output_moments, gradient_statistics
from compress.calibrate.walk import loaded_blocks
from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.output import sync
from compress.models.skeleton import Skeleton
from compress.recipe.sections import GRADIENT_TOKENS
from compress.score.statistics import Statistics
from compress.system.ranks import Ranks

BlockMoments = Iterator[tuple[int, dict[str, Statistics]]]
"""Block index, and view name → the moments of its gradients."""

_KEY = "key"
_RESUME, _GRADIENTS = "resume.safetensors", "output_gradients"
"""The file and the tensor that an interrupted pass goes on from."""

_KEPT = (
    "squared_gradient",
    "gradient_rows",
    "fisher_left",
    "fisher_right",
    "output_gradient_gram",
    "dense_gram",
    "token_weights",
)


BLOCK_METRIC, BLOCK_WEIGHTS = "@output/metric", "@output/token_weights"
"""What an error of the block's own output costs, and how much each token of it counts."""


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
    dtype: torch.dtype = torch.float32,
    seed: int,
    folder: Path,
    keep: Path | None = None,
    labels: Labels = "model",
    ranks: Ranks | None = None,
    at_most: int = GRADIENT_TOKENS,
) -> Iterator[BlockMoments]:
    """Gradient moments by block of the dense model, from the last to the first; each block is loaded meanwhile.

    Args:
        skeleton: the model; no block may be loaded.
        tokens: int64 ``[samples, length]``; of more than ``at_most`` tokens evenly spaced samples are taken.
        needs: view name → which moments.
        device, dtype: where and in what blocks are computed (:func:`~compress.system.precision.gradient_dtype`).
        seed: for the labels.
        labels: as in :func:`~compress.calibrate.gradients.backward`.
        folder: every block's moments are written there (:func:`block_file`). A call that was interrupted is gone on with
            where the arguments are the same; what else is there of moments is deleted.
        keep: moments of an earlier call with the same model, tokens, needs and seed are read from this folder, and those
            that are not there yet are left there once all blocks are done.
        ranks: the processes that share the windows; None for this one alone.

    Raises:
        UserError: gradients that are not finite, or a model that cannot be run block by block.
    """
    tokens = tokens[gradient_windows(*tokens.shape, at_most=at_most)]
    key = _key(skeleton, tokens, needs, f"{seed} {labels}", device, dtype)
    kept = None if keep is None else keep / key
    if kept is not None and kept.is_dir():
        last_to_first = range(len(skeleton.blocks) - 1, -1, -1)
        with loaded_blocks(skeleton, last_to_first, device=device, dtype=dtype) as indices:
            yield ((index, _taken_over(kept, folder, index, needs, device)) for index in indices)
        return
    gather: Gather = alone if ranks is None else Shared(ranks)
    first, resume = _begin(folder, key, len(skeleton.blocks))
    with ExitStack() as stack:
        options: dict[str, Any] = {"device": device, "dtype": dtype}

        def moments() -> Generator[tuple[int, dict[str, Statistics]]]:
            last_to_first = range(len(skeleton.blocks) - 1, first, -1)
            with loaded_blocks(skeleton, last_to_first, **options) as indices:
                for index in indices:
                    yield index, _load(block_file(folder, index), needs, device)
            if first >= 0:
                walk = backward(
                    skeleton,
                    tokens,
                    labels=labels,
                    seed=seed,
                    spill_dir=folder,
                    resume=resume,
                    ranks=ranks,
                    at_most=at_most,
                    **options,
                )
                yield from _computed(skeleton, stack.enter_context(walk), needs, folder, gather)
            if kept is not None:
                _keep(folder, kept, len(skeleton.blocks))

        yield stack.enter_context(closing(moments()))


def _computed(
    skeleton: Skeleton,
    blocks: Iterator[BlockGradients],
    needs: Mapping[str, frozenset[str]],
    folder: Path,
    gather: Gather,
) -> BlockMoments:
    for block in blocks:
        # From here another run can go on: the blocks after this one are on disk.
        _save({_GRADIENTS: block.at_outputs}, folder / _RESUME, {"block": str(block.index)})
        views = skeleton.block_views(block.index)
        moments = gradient_statistics(block, views, needs, gather)
        tensors = _tensors(moments)
        if block.at_outputs.numel() and any("token_gradients" in needs.get(view.name, ()) for view in views):
            metric, weights = block_output_moments(block.at_outputs)
            tensors |= {BLOCK_METRIC: metric.cpu(), BLOCK_WEIGHTS: weights.cpu()}
        _save(tensors, block_file(folder, block.index))
        yield block.index, moments
    (folder / _RESUME).unlink()


def _begin(folder: Path, key: str, blocks: int) -> tuple[int, tuple[int, Tensor] | None]:
    """The block to compute first, -1 if all are there, and what its backward goes on from; deletes other calls' files."""
    same = (folder / _KEY).is_file() and (folder / _KEY).read_text(encoding="utf-8") == key
    if same and all(block_file(folder, index).is_file() for index in range(blocks)):
        return -1, None
    resume = _resume(folder) if same else None
    if resume is not None and all(block_file(folder, i).is_file() for i in range(resume[0] + 1, blocks)):
        return resume[0], resume
    for path in [*(block_file(folder, index) for index in range(blocks)), folder / _RESUME]:
        path.unlink(missing_ok=True)
    (folder / _KEY).write_text(key, encoding="utf-8")
    return blocks - 1, None


def _resume(folder: Path) -> tuple[int, Tensor] | None:
    if not (folder / _RESUME).is_file():
        return None
    with safe_open(folder / _RESUME, framework="pt") as file:
        return int(file.metadata()["block"]), file.get_tensor(_GRADIENTS)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file that is either whole or not there, whenever the process or the machine dies."""
    partial = path.with_suffix(".new")
    save_file(tensors, str(partial), metadata)
    sync(partial)
    partial.rename(path)


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


def _key(
    skeleton: Skeleton,
    tokens: Tensor,
    needs: Mapping[str, frozenset[str]],
    drawn: str,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    source = skeleton.source
    content = content_fingerprint(source.files)
    wanted = {name: sorted(moments) for name, moments in sorted(needs.items())}
    edits = {"dropped": source.dropped, "width_pruned": source.width_pruned}
    if source.rotation:
        edits["rotation"] = source.rotation
    machine = [device.type, str(dtype), torch.__version__]
    parts = json.dumps([source.config, content, edits, wanted, drawn, machine], sort_keys=True, default=str)
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
    fields: dict[str, dict[str, Any]] = {}
    for key, tensor in load_file(str(path)).items():
        name, _, moment = key.rpartition("/")
        fields.setdefault(name, {})[moment] = tensor.to(device)
    # Gradients were seen in any case: one token stands for them.
    return {name: Statistics(1, **moments) for name, moments in fields.items() if needs.get(name)}
