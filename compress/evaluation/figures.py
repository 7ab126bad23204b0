"""The results of an evaluation: frozen records that go to JSON and come back unchanged."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.system.files import check_place, write_text
from compress.system.frames import frame

_MARK = '{\n  "schema_version": 1,\n  "reference": {'
"""By which a file of figures is known."""


@dataclass(frozen=True)
class TaskFigure:
    """One metric of one lm-evaluation-harness task."""

    task: str
    metric: str
    value: float
    stderr: float | None
    samples: int | None


@dataclass(frozen=True)
class TextFigures:
    """What was measured on a text beside the first; the figures are those of :class:`CheckpointFigures`."""

    text: str
    windows: int
    perplexity: float
    perplexity_error: float | None = None
    kl: float | None = None
    kl_error: float | None = None
    kl_99: float | None = None
    kl_999: float | None = None
    rms_shift: float | None = None
    top1: float | None = None
    top1_error: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_error: float | None = None
    calibration_error: float | None = None


@dataclass(frozen=True)
class GenerationFigures:
    """What was written greedily.

    Attributes:
        tokens: new ones of each prompt.
        repetition: share of runs of four tokens that stood in the same continuation before, 0 to 1.
        agreement: mean number of tokens before the first that the dense model says otherwise; None for the dense model.
        recall: share of `recall_of` made-up lists from which the right number is said; None where not asked.
    """

    tokens: int
    repetition: float
    agreement: float | None = None
    recall: float | None = None
    recall_of: int = 0


@dataclass(frozen=True)
class NeedleFigures:
    """A number said far back in `context` tokens: found in `found` of `of` depths; nats for each token of the answers."""

    context: int
    found: int
    of: int
    nll: float


@dataclass(frozen=True)
class SeedSpread:
    """Checkpoints of one recipe under different seeds: mean and standard deviation of their KL in nats."""

    recipe: str
    names: tuple[str, ...]
    kl: float
    deviation: float


@dataclass(frozen=True)
class CheckpointFigures:
    """What was measured of one checkpoint.

    Attributes:
        name: short label, unique within an evaluation.
        path: the folder or hub name it was loaded from.
        perplexity: exp of the mean negative log-likelihood in nats over all predicted tokens; NaN for an embedding model.
        kl: KL(reference ‖ this) in nats, mean over all positions; None for the reference itself.
        kl_error: standard error of `kl` over the windows; None below two windows.
        kl_99, kl_999: the KL of which 99% and 99.9% of the positions stay below; None for the reference.
        top1: share of positions where the most likely token is the reference's; None for the reference.
        rms_shift: root mean square of the change in the next token's probability, 0 to 1; None for the reference.
        perplexity_ratio: `perplexity` ÷ the reference's; None for the reference.
        top1_error, perplexity_error, perplexity_ratio_error: standard errors over the windows, which are taken as independent;
            None below two windows.
        calibration_error: expected calibration error of the most likely token's probability, 0 to 1.
        hidden_error: of an embedding model, ‖h − h₀‖ ÷ ‖h₀‖ of its last hidden states; None for the reference.
        cosine, cosine_min: of an embedding model, cosine of its pooled embedding with the reference's, mean and smallest over
            the windows; None for the reference.
        bytes_on_disk: size of the weight files in bytes; None where the folder holds no safetensors files.
        outside_bytes: of these the bytes of the embeddings and the head, compressed or not; None where they are not known.
        bits_per_weight: 8 × the bytes of all stored tensors ÷ the number of the dense model's parameters.
        loaded_bytes: bytes of the parameters and buffers once loaded.
        load_seconds: wall time of loading.
        prefill_tokens_per_second, decode_tokens_per_second: at batch 1; None where not measured.
        tasks: lm-evaluation-harness results.
        texts: figures on further texts.
        generation, continuations: of greedy text, and the text itself, one for each of the evaluation's prompts.
        needle: of a long context.
        notes: anything a reader has to know about this row.
    """

    name: str
    path: str
    perplexity: float
    kl: float | None = None
    kl_error: float | None = None
    top1: float | None = None
    bytes_on_disk: int | None = None
    bits_per_weight: float | None = None
    loaded_bytes: int | None = None
    load_seconds: float | None = None
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    tasks: tuple[TaskFigure, ...] = ()
    notes: tuple[str, ...] = ()
    hidden_error: float | None = None
    cosine: float | None = None
    cosine_min: float | None = None
    outside_bytes: int | None = None
    kl_99: float | None = None
    kl_999: float | None = None
    rms_shift: float | None = None
    perplexity_ratio: float | None = None
    top1_error: float | None = None
    perplexity_error: float | None = None
    perplexity_ratio_error: float | None = None
    calibration_error: float | None = None
    texts: tuple[TextFigures, ...] = ()
    generation: GenerationFigures | None = None
    continuations: tuple[str, ...] = ()
    needle: NeedleFigures | None = None


@dataclass(frozen=True)
class Evaluation:
    """Several checkpoints measured on the same windows of the same text.

    Attributes:
        reference: the dense model's own figures.
        candidates: one per compressed checkpoint, in the order given.
        text: name of the text file.
        length: context length: tokens per window.
        windows: number of consecutive windows from the start of the text.
        bos: whether each window begins with the tokenizer's beginning-of-text token.
        dtype: "fp32", "bf16" or "fp16", in which the models ran; all figures are computed in fp32.
        device, threads: where they ran.
        notes: what holds for all rows.
        pooling: how an embedding model's hidden states become one embedding; None for a language model.
        text_sha256: of the text file.
        seeds: what the seed alone changes, where candidates differ in it alone.
        prompts: those that `continuations` continue.
    """

    reference: CheckpointFigures
    candidates: tuple[CheckpointFigures, ...]
    text: str
    length: int
    windows: int
    dtype: str
    device: str
    threads: int
    bos: bool = False
    notes: tuple[str, ...] = ()
    pooling: str | None = None
    text_sha256: str | None = None
    seeds: tuple[SeedSpread, ...] = ()
    prompts: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[CheckpointFigures, ...]:
        """The reference, then the candidates."""
        return (self.reference, *self.candidates)

    @property
    def tokens(self) -> int:
        """Number of positions over which KL and agreement are averaged."""
        return self.length * self.windows

    @property
    def context(self) -> str:
        """How the figures were measured, in one line: no perplexity is printed without it."""
        start = ", each after a BOS token" if self.bos else ""
        return (
            f"a context of {self.length} tokens, on the first {self.windows} consecutive windows "
            f"of {self.text}{start}, in {self.dtype} on {self.device}"
        )

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame``: a row for each checkpoint, by name, and a column for each figure and task.

        Raises:
            UserError: pandas is not installed.
        """
        return frame((_flat(row) for row in self.rows), index="name")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for `json.dumps`; figures that are not finite become null."""
        return _finite({"schema_version": 1, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`; a null perplexity of a language model comes back as infinity."""
        fields = {key: value for key, value in data.items() if key != "schema_version"}
        absent = math.inf if fields.get("pooling") is None else math.nan
        fields["reference"] = _checkpoint(fields["reference"], absent)
        fields["candidates"] = tuple(_checkpoint(row, absent) for row in fields["candidates"])
        fields["notes"] = tuple(fields.get("notes", ()))
        fields["prompts"] = tuple(fields.get("prompts", ()))
        fields["seeds"] = tuple(
            SeedSpread(**{**one, "names": tuple(one["names"])}) for one in fields.get("seeds", ())
        )
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file.

        Raises:
            UserError: there is a link of that name, a file that holds no such figures, or it cannot be written.
        """
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        write_text(path, text, mark=_MARK)

    @staticmethod
    def check_place(path: str | Path) -> None:
        """Refuse a file that :meth:`save` could not write, before anything is measured.

        Raises:
            UserError: it could not.
        """
        check_place(path, mark=_MARK)

    @classmethod
    def read(cls, path: str | Path) -> Evaluation:
        """Read a file that `save` wrote. Raises UserError if it is none."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise UserError(
                f"There is no file '{path}'; give one that `compress eval --save` wrote."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is not an evaluation that this version can read ({error}): "
                "measure again with `compress eval`."
            ) from error


def _checkpoint(data: Mapping[str, Any], absent: float) -> CheckpointFigures:
    fields = dict(data)
    if fields["perplexity"] is None:
        fields["perplexity"] = absent
    fields["tasks"] = tuple(
        TaskFigure(**{**task, "value": math.nan if task["value"] is None else task["value"]})
        for task in fields.get("tasks", ())
    )
    fields["notes"] = tuple(fields.get("notes", ()))
    fields["continuations"] = tuple(fields.get("continuations", ()))
    fields["texts"] = tuple(
        TextFigures(**{**one, "perplexity": math.inf if one["perplexity"] is None else one["perplexity"]})
        for one in fields.get("texts", ())
    )
    for name, kind in (("generation", GenerationFigures), ("needle", NeedleFigures)):
        fields[name] = kind(**fields[name]) if fields.get(name) is not None else None
    return CheckpointFigures(**fields)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _flat(row: CheckpointFigures) -> dict[str, Any]:
    """The figures of a row without what is no number, a column for each task."""
    nested = ("tasks", "notes", "texts", "generation", "continuations", "needle")
    fields = {key: value for key, value in dataclasses.asdict(row).items() if key not in nested}
    return fields | {f"{one.task} {one.metric}": one.value for one in row.tasks}
