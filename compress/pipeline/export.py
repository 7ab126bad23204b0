"""A finished checkpoint written anew in another form; codes that the form can hold stay what they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from compress_kernels.activations import ActivationScheme
from compress_kernels.layouts import Layout, TensorSpec

from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.shards import DEFAULT_SHARD_SIZE, Shard, lay_out
from compress.checkpoint.source import Source, open_source
from compress.checkpoint.writer import REPORT, Writer
from compress.errors import UserError
from compress.formats import AddsFiles, Exporter, Facts, HasNotes, OwnFile, with_quantization
from compress.formats.base import put_inputs
from compress.formats.dense_source import dense_source, open_any, stays_packed
from compress.formats.gguf.carry import block_type_of
from compress.formats.gguf.exporter import GGUF
from compress.formats.packed_weight import PackedWeight
from compress.formats.read import packed_weights
from compress.formats.servers import servers_of
from compress.models.skeleton import open_skeleton
from compress.models.views import WeightView
from compress.planning.make import facts_of
from compress.planning.outputs import output_tensors
from compress.recipe.registry import find
from compress.report.card import CARD, model_card, read_card
from compress.report.schema import FormatChoice, Report
from compress.structures.base import CompressedWeight

_LOG = logging.getLogger(__name__)

EXPORTED = ("gguf", "gptq", "awq", "mlx", "fp8", "modelopt")
"""The forms that a finished checkpoint can be written anew in."""
TOLERANCE = {"gguf": 2e-3, "gptq": 0.0, "awq": 0.0, "mlx": 1e-2, "fp8": 0.0, "modelopt": 1e-6}
"""Relative error of a weight whose codes are carried over: GGUF rounds scales to fp16, MLX a zero point times its scale to the
dtype of the scales, ModelOpt stores the reciprocal of NVFP4's scale of the whole weight."""


@dataclass(frozen=True)
class Carried:
    """A packed weight whose codes go into the output as they are; ``tensors`` are those that hold it there.

    GGUF leaves out how its inputs were rounded.
    """

    view: WeightView
    layout: Layout
    input_from: str | None = None
    activations: ActivationScheme | None = None
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the folder, bytes of its weight files, weights carried over, and other tensors; sentences on what a
    server does otherwise than transformers."""

    out: Path
    nbytes: int
    carried: int
    dense: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Export:
    """A checkpoint that is written anew.

    Attributes:
        source: as it is stored.
        dense: the dense checkpoint that its values are.
        packed: its packed weights.
        weights: those whose codes are carried over.
        facts: what is known of the model.
        exporter: the form that is written.
    """

    source: Source
    dense: Source
    packed: Mapping[str, PackedWeight]
    weights: tuple[Carried, ...]
    facts: Facts
    exporter: Exporter

    def files(self) -> tuple[tuple[Shard, ...], tuple[str, ...]]:
        """The output's weight files, and the tensors in them that hold no carried weight."""
        if isinstance(self.exporter, OwnFile):
            shards = self.exporter.lay_out(self.weights, self.facts)
            return shards, tuple(self.exporter.converted(self.weights, self.facts))
        outputs, copied = output_tensors(self.weights, self.facts)
        return lay_out(outputs, DEFAULT_SHARD_SIZE), copied

    def files_beside(self) -> dict[str, str]:
        """The files that the form has of its own: name → text."""
        return self.exporter.files(self.weights, self.facts) if isinstance(self.exporter, AddsFiles) else {}

    def write(self, writer: Writer, others: Iterable[str]) -> None:
        """Fill the output's weight files."""
        for weight in self.weights:
            if weight.view.name not in writer.done:
                solved = _read(self.source, self.packed[weight.view.name])
                self.exporter.save(weight, solved, writer, self.facts)
                if calibrated := self.packed[weight.view.name].inputs(self.source):
                    put_inputs(self.exporter, weight, calibrated, writer)
        writer.finish_block("export", {})
        if isinstance(self.exporter, OwnFile):
            exporter = self.exporter
            writer.convert((name, exporter.convert(name, self.dense, self.facts)) for name in others)
        else:
            writer.pass_through(others)

    def check(self, folder: Path) -> None:
        """Read the output back and hold the carried weights against the source.

        Raises:
            UserError: one differs by more than its form's numbers have to.
        """
        written = open_source(folder, trust_remote_code=self.source.trust_remote_code)
        found = packed_weights(written)
        for name in (weight.view.name for weight in self.weights):
            ours = _read(written, found[name]).dense(torch.float32)
            theirs = _read(self.source, self.packed[name]).dense(torch.float32)
            error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
            if not error <= TOLERANCE[self.exporter.name]:
                raise UserError(
                    f"{folder}: {name} is not what it was (relative error {error:.2g}): its scales do not fit the form's; run "
                    f"the recipe again with --format {self.exporter.name}"
                )


def export(
    path: str | Path,
    out: str | Path,
    *,
    format: str = "gguf",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Write the checkpoint at ``path``, dense or compressed, anew in another form.

    Weights on integer grids that the form holds keep their codes. In GGUF all others are decoded and stored in the checkpoint's
    dtype; the other forms refuse a checkpoint with packed weights that they cannot hold. The output is read back before the
    folder gets its name.

    Args:
        path: a folder that ``compress`` wrote, or any checkpoint that it reads.
        out: the folder to make.
        format: ``gguf``, ``gptq``, ``awq``, ``mlx``, ``fp8`` or ``modelopt``.
        overwrite: replace ``out`` if it exists, once the new one is verified.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        UserError: the checkpoint cannot be read, or the form cannot hold it.
    """
    if format not in EXPORTED:
        known = f"{', '.join(EXPORTED[:-1])} or {EXPORTED[-1]}"
        raise UserError(
            f"a finished checkpoint can be exported as {known}, not as '{format}': run the recipe again"
        )
    made = _prepared(open_any(path, trust_remote_code=trust_remote_code), format)
    shards, others = made.files()
    identity = content_fingerprint(made.source.files)
    quantization = made.exporter.quantization_config(made.weights, made.facts)
    with Writer(out, shards, source=made.dense, fingerprint=identity, overwrite=overwrite) as writer:
        _LOG.info("writing %s", out)
        made.write(writer, others)
        folder, _ = writer.finish(
            with_quantization(made.dense.config, made.exporter, quantization),
            lambda written: None,
            files=lambda report: {**made.files_beside(), **_card(made, writer.out.name, format, shards)},
            verify=made.check,
        )
    notes = made.exporter.notes(made.weights, made.facts) if isinstance(made.exporter, HasNotes) else ()
    return Exported(folder, sum(shard.nbytes for shard in shards), len(made.weights), len(others), notes)


def _card(made: _Export, name: str, format: str, shards: Sequence[Shard]) -> dict[str, str]:
    """The model card of the output, where a run of ours made the checkpoint; another checkpoint's card is carried over."""
    if not (made.source.path / REPORT).is_file():
        return {}
    report = Report.read(made.source.path / REPORT)
    choice = FormatChoice(name=format, reason="exported", servers=servers_of(format, made.weights))  # type: ignore[arg-type]
    nbytes = report.bytes.model_copy(update={"actual": sum(shard.nbytes for shard in shards)})
    exported = report.model_copy(update={"format": choice, "bytes": nbytes})
    return {CARD: model_card(exported, name=name, card=read_card(made.source.path))}


def _prepared(source: Source, format: str) -> _Export:
    """All that can be refused, before anything is written."""
    packed = packed_weights(source) if stays_packed(source) else {}
    dense = dense_source(source)
    skeleton = open_skeleton(dense)
    facts, exporter = facts_of(skeleton), find("exporter", format)()
    if facts.uneven:
        raise UserError(
            f"{source.path}: blocks of unequal widths are built by compress alone; {format} cannot hold them"
        )
    weights = _carried(skeleton.views, packed, exporter)
    if not weights and not isinstance(exporter, OwnFile):
        raise UserError(
            f"{source.path} has no packed weights whose codes {format} could hold: run a recipe on the dense model with "
            f"--format {format}"
        )
    if objection := exporter.objection(weights, facts):
        raise UserError(f"format {format} cannot hold this: {objection}")
    named = (replace(weight, tensors=exporter.specs(weight, facts)) for weight in weights)
    return _Export(source, dense, packed, tuple(named), facts, exporter)


def _carried(
    views: Sequence[WeightView], packed: Mapping[str, PackedWeight], exporter: Exporter
) -> list[Carried]:
    """The packed weights; for GGUF, which holds others dense, those that one of its types holds."""
    found = [Carried(view, packed[view.name].layout) for view in views if view.name in packed]
    if not isinstance(exporter, GGUF):
        return [replace(one, activations=packed[one.view.name].activations) for one in found]
    return [weight for weight in found if block_type_of(weight.layout, weight.view.shape) is not None]


def _read(source: Source, weight: PackedWeight) -> CompressedWeight:
    return CompressedWeight(weight.layout, weight.shape, weight.tensors(source))
