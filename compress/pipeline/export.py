"""A finished checkpoint, dense or compressed, written anew as a GGUF file; codes that fit a GGUF type stay what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from compress_kernels.activations import ActivationScheme
from compress_kernels.layouts import Layout

from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.source import Source, open_source
from compress.checkpoint.writer import Writer
from compress.errors import UserError
from compress.formats.dense_source import dense_source, open_any, stays_packed
from compress.formats.gguf.carry import block_type_of
from compress.formats.gguf.exporter import GGUF
from compress.formats.packed_weight import PackedWeight
from compress.formats.read import packed_weights
from compress.models.skeleton import open_skeleton
from compress.models.views import WeightView
from compress.planning.make import facts_of
from compress.structures.base import CompressedWeight

TOLERANCE = 2e-3
"""Relative error that the fp16 of a block's scale may add to a weight whose codes are carried over."""


@dataclass(frozen=True)
class Carried:
    """A packed weight whose codes go into the file as they are; how its inputs were rounded is left out."""

    view: WeightView
    layout: Layout
    input_from: str | None = None
    activations: ActivationScheme | None = None


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the folder, bytes of its GGUF file, weights carried over, and other tensors."""

    out: Path
    nbytes: int
    carried: int
    dense: int


def export_gguf(
    path: str | Path, out: str | Path, *, overwrite: bool = False, trust_remote_code: bool = False
) -> Exported:
    """Write the checkpoint at ``path`` as ``out/model.gguf``.

    Weights on integer grids that a GGUF type holds keep their codes; all others are decoded and stored in the checkpoint's
    dtype. The file is read back before the folder gets its name.

    Args:
        path: a folder that ``compress`` wrote, or any checkpoint that it reads.
        out: the folder to make.
        overwrite: replace ``out`` if it exists, once the new one is verified.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        UserError: the checkpoint cannot be read, or GGUF cannot express the model or its tokenizer.
    """
    source = open_any(path, trust_remote_code=trust_remote_code)
    packed = packed_weights(source) if stays_packed(source) else {}
    dense = dense_source(source)
    skeleton = open_skeleton(dense)
    facts, exporter = facts_of(skeleton), GGUF()
    if facts.uneven:
        raise UserError(
            f"{source.path}: blocks of unequal widths are built by compress alone; GGUF cannot hold them"
        )
    weights = _carried(skeleton.views, packed)
    if objection := exporter.objection(weights, facts):
        raise UserError(f"format gguf cannot hold this: {objection}")
    shards = exporter.lay_out(weights, facts)
    identity = content_fingerprint(source.files)
    with Writer(out, shards, source=dense, fingerprint=identity, overwrite=overwrite) as writer:
        for weight in weights:
            if weight.view.name not in writer.done:
                solved = _read(source, packed[weight.view.name])
                exporter.save(weight, solved, writer, facts)
        writer.finish_block("export", {})
        others = exporter.converted(weights, facts)
        writer.convert((name, exporter.convert(name, dense, facts)) for name in others)
        config = {**dense.config, "quantization_config": exporter.quantization_config(weights, facts)}
        made, _ = writer.finish(
            config,
            lambda written: None,
            files=lambda report: {},
            verify=lambda folder: _check(folder, source, packed, weights),
        )
    return Exported(made, sum(shard.nbytes for shard in shards), len(weights), len(others))


def _carried(views: tuple[WeightView, ...], packed: Mapping[str, PackedWeight]) -> list[Carried]:
    found = (Carried(view, packed[view.name].layout) for view in views if view.name in packed)
    return [weight for weight in found if block_type_of(weight.layout, weight.view.shape) is not None]


def _read(source: Source, weight: PackedWeight) -> CompressedWeight:
    return CompressedWeight(weight.layout, weight.shape, weight.tensors(source))


def _check(folder: Path, source: Source, packed: Mapping[str, PackedWeight], weights: list[Carried]) -> None:
    """The file, read back, holds the values of the weights that were carried over."""
    written = open_source(folder, trust_remote_code=source.trust_remote_code)
    found = packed_weights(written)
    for weight in weights:
        name = weight.view.name
        ours = _read(written, found[name]).dense(torch.float32)
        theirs = _read(source, packed[name]).dense(torch.float32)
        error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
        if not error <= TOLERANCE:
            raise UserError(
                f"{folder}: {name} is not what it was (relative error {error:.2g}): its scales do not fit fp16; run the recipe "
                "again with --format gguf"
            )
