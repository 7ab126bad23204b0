"""The schema of `compress.json`: everything that is known about one compressed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import UserError
from compress.system.frames import frame

EVALUATION = "evaluation.json"
"""The file in an output's folder that a report takes its figures from."""


class _Frozen(BaseModel):
    # A report written by a later version may say more; what is said here is checked.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class SourceModel(_Frozen):
    """The dense checkpoint.

    Attributes:
        name: folder name or hub name; no path of the machine.
        revision: commit on the hub, where it came from there.
        architecture: class name in its config, such as "LlamaForCausalLM".
        parameters: numbers stored in its weight files.
        blocks: number of decoder blocks.
        dtype: the dtype of most of its weights, such as "bfloat16".
        stored_as: the quantized form that its weights were decoded from, or None.
    """

    name: str
    revision: str | None = None
    architecture: str
    parameters: int
    blocks: int
    dtype: str
    stored_as: str | None = None


class Calibration(_Frozen):
    """The text that statistics were gathered on.

    Attributes:
        data: the text, by the name of its file or data set.
        samples: windows.
        length: tokens in a window, BOS included.
        tokens: samples × length.
        bos: whether every window begins with the BOS token.
    """

    data: str
    samples: int
    length: int
    tokens: int
    bos: bool = False


class FormatChoice(_Frozen):
    """How the checkpoint is written.

    Attributes:
        name: the form, such as "compressed-tensors" or "gguf".
        reason: in words, why this one.
        servers: what loads it besides `compress.load`, of "transformers", "vllm", "gptqmodel", "llama.cpp" and "mlx".
    """

    name: Literal[
        "compressed-tensors",
        "bitsandbytes",
        "gguf",
        "gptq",
        "awq",
        "mlx",
        "fp8",
        "modelopt",
        "native",
        "dense",
    ]
    reason: str
    servers: tuple[str, ...] = ()


class Bytes(_Frozen):
    """Bytes of the weight files: of the source, of the output as planned, and as written.

    ``outside`` are those of the embeddings and the head in the output; ``None`` in reports of before.
    """

    source: int
    planned: int
    actual: int
    outside: int | None = None


class Shard(_Frozen):
    """One weight file of the output, by name in its folder."""

    file: str
    sha256: str
    bytes: int


class WeightFigures(_Frozen):
    """One compressed weight.

    Attributes:
        name: logical module name, without ".weight".
        block: index of its decoder block; None outside the blocks.
        kind: "linear", "conv1d", "expert", "embedding" or "head".
        expert: index of the expert, for kind "expert".
        shape: `(out, in)`.
        structure: in words: "int4 group 128".
        solver: names of the solvers in order, joined by " + ".
        bits_per_weight: 8 × bytes_after ÷ (out × in), scales and zero points included.
        bytes_before, bytes_after: of the stored tensors.
        error: loss(W − Θ) ÷ loss(W) in the metric that was solved in; 0.01 is 1% of the output's energy.
        error_nearest: the same for the structure's nearest rounding; None where it was not computed.
        damping: relative to the mean of the Gram matrix's diagonal; None for solvers without.
        tokens: calibration tokens that reached this weight; None without calibration.
        fallback: in words, what was done in place of what the recipe asks, and why.
        info: further figures from the solver.
        distance: relative distance ‖Θ − W‖ ÷ ‖W‖ of the stored weight from the source's, which `verify` computes anew.
        outlier: largest element of the source's weight ÷ the median of their magnitudes, where that is extreme.
    """

    name: str
    block: int | None
    kind: str
    expert: int | None = None
    shape: tuple[int, int]
    structure: str
    solver: str
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    error: float | None
    error_nearest: float | None = None
    damping: float | None = None
    tokens: int | None = None
    fallback: str | None = None
    info: dict[str, float | str | None] = Field(default_factory=dict)
    distance: float | None = None
    outlier: float | None = None


class Skipped(_Frozen):
    """A tensor of two or more dimensions that was written as it was, with the reason in words."""

    name: str
    reason: str
    shape: tuple[int, ...] = ()
    bytes: int = 0


class StepFigures(_Frozen):
    """One step of the run, summed over blocks: "load", "observe", "solve", "write", "advance", "verify", …

    In "wait" nothing is done until the disk has done its part.
    `peak_bytes` is the process's highest resident memory while in this step, beyond what the interpreter and the
    libraries take; None where it was not measured.
    """

    name: str
    seconds: float
    peak_bytes: int | None = None


class BlockFigures(_Frozen):
    """One decoder block: wall time of all its steps, and peak memory as in `StepFigures`.

    `spans`: step → when it first began and last ended, in seconds of the run. Besides the steps there are "read ahead" and
    "write behind", which the disk does while other blocks are worked on.
    """

    index: int
    seconds: float
    peak_bytes: int | None = None
    spans: dict[str, tuple[float, float]] = Field(default_factory=dict)


class HealingPoint(_Frozen):
    """A measurement while healing: steps and tokens so far, mean training loss since the one before, held-out KL in nats."""

    step: int
    tokens: int
    loss: float | None
    kl: float
    gradient_norm: float | None = None


class Healing(_Frozen):
    """Training after compression.

    Attributes:
        trained: trainable → how many numbers it trained.
        data: the text, by the name of its file or data set.
        tokens: tokens trained on.
        steps: steps taken, of `planned_steps`.
        held_out: held-out windows, of `length` tokens.
        start_kl, end_kl: held-out KL by token before healing, and of what was kept, in nats.
        best_step: the step after which the held-out KL was least.
        ended: why training ended, in words.
        points: all measurements, the start first.
        twice: held-out KL that twice the tokens would bring by a fit to the measurements; None where none fits.
        seconds: of the training; None where it was not measured.
        rate: the largest learning rate.
    """

    trained: dict[str, int]
    data: str
    tokens: int
    steps: int
    planned_steps: int
    held_out: int
    length: int
    start_kl: float
    end_kl: float
    best_step: int
    ended: str
    points: tuple[HealingPoint, ...]
    twice: float | None = None
    seconds: float | None = None
    rate: float | None = None


class Machine(_Frozen):
    """Where it ran: "cpu" or the accelerator's name, threads, operating system."""

    device: str
    threads: int
    system: str = ""


class Report(_Frozen):
    """One run of `compress`, whole. What is of time, memory or machine may differ between two runs; the rest may not.

    Attributes:
        versions: package → version: "compress-llm", "torch", "transformers", "python", ….
        recipe: the recipe as it was carried out, settings included; its "name" is shown.
        weights: compressed ones, in the order of the blocks.
        skipped: not compressed, with reasons.
        steps: in the order in which they run.
        peak_bytes: the highest of the whole run, as in `StepFigures`.
        planned_peak_bytes: what the plan predicted.
        plan: what was planned, as `compress plan --json` prints it; `verify` holds the output against it.
        tensors: name → SHA-256 of the bytes of every tensor written.
        sensitivity: figures of a pass before solving, where a recipe asks for one.
        healing: training after compression, where there was any; the errors of single weights are those before it.
        notes: anything else a reader has to know, a sentence each.
    """

    schema_version: Literal[1] = 1
    versions: dict[str, str]
    recipe: dict[str, Any]
    seed: int
    source: SourceModel
    format: FormatChoice
    bytes: Bytes
    shards: tuple[Shard, ...]
    weights: tuple[WeightFigures, ...]
    skipped: tuple[Skipped, ...] = ()
    calibration: Calibration | None = None
    plan: dict[str, Any] = Field(default_factory=dict)
    tensors: dict[str, str] = Field(default_factory=dict)
    sensitivity: dict[str, Any] | None = None
    healing: Healing | None = None
    notes: tuple[str, ...] = ()
    machine: Machine | None = None
    steps: tuple[StepFigures, ...] = ()
    blocks: tuple[BlockFigures, ...] = ()
    seconds: float | None = None
    peak_bytes: int | None = None
    planned_peak_bytes: int | None = None

    @property
    def recipe_name(self) -> str:
        """The recipe's name."""
        return str(self.recipe.get("name", "unnamed"))

    @property
    def bits_per_weight(self) -> float | None:
        """Mean over the compressed weights, scales and zero points included; None if there are none."""
        count = sum(weight.shape[0] * weight.shape[1] for weight in self.weights)
        return 8 * sum(weight.bytes_after for weight in self.weights) / count if count else None

    @property
    def ratio(self) -> float:
        """Source bytes ÷ written bytes."""
        return self.bytes.source / max(self.bytes.actual, 1)

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame``: a row for each compressed weight, by name.

        Raises:
            UserError: pandas is not installed.
        """
        return frame((weight.model_dump() for weight in self.weights), index="name")

    def to_text(self) -> str:
        """What `compress.json` holds."""
        return self.model_dump_json(indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write `compress.json`."""
        Path(path).write_text(self.to_text(), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """Read a `compress.json`. Raises UserError if it is missing or is none."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{path} cannot be read ({reason}): give a folder that `compress run` wrote."
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(f"{path} is not a report of this version ({place}: {first['msg']}).") from None
