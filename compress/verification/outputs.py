"""Output check: a reloaded checkpoint and the source with the decoded weights compute the same, block by block."""

from __future__ import annotations

import logging
from collections.abc import Set
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from compress.calibrate.capture import WrongDtype
from compress.calibrate.simulate import Simulation
from compress.calibrate.stream import BlockStream
from compress.calibrate.walk import walk_blocks
from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.formats.read import decoder
from compress.models.skeleton import Skeleton, open_skeleton
from compress.models.source_weights import SourceWeights
from compress.models.views import WeightView
from compress.runtime.load import load_block, open_compressed
from compress.runtime.rounding import simulation_of
from compress.verification.distances import Distances

_LOG = logging.getLogger(__name__)

TOKENS = 16
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Relative error of a block's output that the order of sums may make."""
SHARE_OF_ROUNDING = 0.1
"""Where inputs are rounded: the error that the order of sums may make, as a share of what rounding changes."""


def check_logits(folder: Path, source: Source) -> None:
    """Compare the outputs of the reloaded checkpoint ``folder`` with those of the ``source`` with the decoded weights put in.

    Both run block by block on the same tokens, so that two blocks at most are in memory. What follows the last block is
    byte-identical, or was held against the source as a decoded weight, and so the logits agree as the last hidden states do.
    Where these differ in half precision, or the model's code does not run in it, fp32 decides: a router that stands between
    two experts follows the last bit.

    Every weight that is decoded on the way is held against the source's, too (:mod:`compress.verification.distances`).

    Raises:
        UserError: a block computes something else after reloading, a weight is not the source's, or the source holds a NaN;
            the sentence names it.
    """
    found: str | None = None
    for dtype in dict.fromkeys((open_skeleton(source).dtype, torch.float32)):
        try:
            found = difference(folder, source, dtype)
        except WrongDtype:
            continue
        if found is None:
            return
    raise UserError(
        f"{folder}: {found} computes something else after reloading: do not use this checkpoint and report it"
    )


def difference(folder: Path, source: Source, dtype: torch.dtype, blocks: range | None = None) -> str | None:
    """The first block whose output differs by more than rounding in ``dtype``, and by how much.

    Args:
        folder: the reloaded checkpoint.
        source: that it was made from.
        dtype: what blocks are computed in.
        blocks: which ones, the first of them on what the embedding returns; None for all.

    Raises:
        UserError: a weight is not the source's; the sentence names it.
    """
    written = open_source(folder, trust_remote_code=source.trust_remote_code)
    reloaded, packed = open_compressed(written)
    decode = decoder(written, packed, dtype)

    def stored(view: WeightView) -> Tensor | None:
        return decode(view.name) if packed else _dense_of(written, view)

    plain = open_skeleton(source)
    outside = {view.name: view for view in plain.block_views(None)}
    # What is compressed outside of the blocks (embeddings) is in both models as it was written.
    original = open_skeleton(source, decode=lambda name: stored(outside[name]) if name in outside else None)
    distances, weights = Distances.of(folder), SourceWeights(plain)
    if blocks is None or blocks.start == 0:
        _LOG.info("comparing what lies outside of the blocks")
        with plain.loaded_rest(device="cpu", dtype=dtype, head=True, check=True):
            pass
        for view in outside.values():
            if (dense := stored(view)) is not None:
                distances.check(view, dense, weights)
    tokens = torch.arange(TOKENS).unsqueeze(0) % original.model.config.get_text_config().vocab_size
    # The reference backend reads the tensors as any server would, and starts no compiler.
    load = partial(load_block, reloaded, packed, device="cpu", dtype=dtype, backend="reference")
    release = partial(_drop, reloaded)
    load_checked = partial(original.load_block, device="cpu", dtype=dtype, check=True)
    rounded = simulation_of(original, packed, written)
    with (
        walk_blocks(
            original, tokens, device="cpu", dtype=dtype, blocks=blocks, load=load_checked, simulation=rounded
        ) as ours,
        walk_blocks(
            reloaded, tokens, device="cpu", dtype=dtype, blocks=blocks, load=load, release=release
        ) as theirs,
    ):
        for index, _ in zip(ours, theirs, strict=True):
            name = original.blocks[index]
            _LOG.info("comparing the outputs of block %d of %d", index + 1, len(original.blocks))
            put: set[str] = set()
            for view in original.block_views(index):
                dense = stored(view)
                if dense is not None:
                    distances.check(view, dense, weights)
                    view.put(original.parameter_of(view), dense)
                    put |= set(view.sources)
            _put_parts(original, name, written, put, packed=bool(packed))
            tolerance = TOLERANCE[dtype]
            if rounded.active(index):
                # A sum in another order moves an input across the edge of two codes; every block is compared on one input.
                theirs.stream.follow(ours.stream)
                tolerance = max(tolerance, SHARE_OF_ROUNDING * _rounding(ours.stream, index))
            error = _relative(next(ours.stream.run(index)), next(theirs.stream.run(index)))
            if not error <= tolerance:
                return f"{name} (relative error {error:.2g})"
    return None


def _rounding(stream: BlockStream, index: int) -> float:
    """The relative change of a block's output that rounding its inputs makes."""
    simulation = stream.simulation
    with_rounding = next(stream.run(index))
    try:
        stream.simulation = Simulation()
        return _relative(next(stream.run(index)), with_rounding)
    finally:
        stream.simulation = simulation


def _put_parts(skeleton: Skeleton, block: str, written: Source, put: Set[str], *, packed: bool) -> None:
    """Norms and biases as they were written: a transform may have changed them, and all else was compared byte by byte.

    A dense copy of weights that share a tensor (fused experts) has no tensor for each: there the whole is taken over, as is
    what was fitted anew and stays as it is, of which the source knows no values. ``put``: disk tensors of weights in place.
    """
    fused = set() if packed else {view.parameter for view in skeleton.views if not _alone(view, written)}
    anew = skeleton.source.unread - put
    for name, parameter in skeleton.model.get_submodule(block).named_parameters(prefix=block):
        pieces = skeleton.pieces.get(name, ())
        known = bool(pieces) and all(piece.disk in written.headers for piece in pieces)
        whole = known and (parameter.ndim == 1 or name in fused)
        for piece in pieces:
            if whole or (piece.disk in anew and piece.disk in written.headers):
                piece.place(parameter.detach()).copy_(piece.of_disk(written.read(piece.disk)))


def _alone(view: WeightView, written: Source) -> bool:
    return f"{view.name}.weight" in written.headers


def _dense_of(written: Source, view: WeightView) -> Tensor | None:
    """The weight ``[out, in]`` from a dense checkpoint, where it is a tensor of its own."""
    if not _alone(view, written):
        return None
    stored = written.read(f"{view.name}.weight")
    return stored.T if view.transposed else stored


def _drop(skeleton: Skeleton, index: int) -> None:
    """Free a block whose linear layers were replaced by packed ones: it is not used again."""
    skeleton.block_module(index).to("meta")


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / ours.float().norm().clamp_min(1e-12))
