"""Several finished outputs of one model, side by side: what is compared, and what keeps their figures from comparing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from compress.checkpoint.writer import REPORT
from compress.errors import UserError
from compress.evaluation.figures import CheckpointFigures, Evaluation, SeedSpread
from compress.evaluation.provenance import recipe_key, seed_spreads
from compress.report.schema import EVALUATION, Report
from compress.system import units as words


@dataclass(frozen=True)
class Output:
    """A finished output: its name on the page, unlike all others', and its `compress.json`."""

    name: str
    report: Report


@dataclass(frozen=True)
class Measured:
    """The outputs that were measured in one way: on the same windows of the same text, in the same dtype.

    Attributes:
        context: in one line, how.
        dense: the dense model's figures.
        rows: output's name → its figures.
    """

    context: str
    dense: CheckpointFigures
    rows: dict[str, CheckpointFigures] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Outputs, their figures, the most complete ones first, and sentences on what does not compare."""

    outputs: tuple[Output, ...]
    measured: tuple[Measured, ...]
    warnings: tuple[str, ...]


def compare(folders: Sequence[Path], evaluations: Sequence[Evaluation] = ()) -> Comparison:
    """Read finished outputs of one model.

    Args:
        folders: those that `compress run` wrote, two or more.
        evaluations: figures of them; beside these each folder's `evaluation.json` is read if there is one.

    Raises:
        UserError: a folder is no finished output, one is named twice, or two were made from different models.
    """
    resolved = [folder.resolve() for folder in folders]
    for index, folder in enumerate(resolved):
        if folder in resolved[:index]:
            raise UserError(f"{folders[index]} is named twice: name each output once.")
    outputs = [
        Output(name, Report.read(folder / REPORT))
        for name, folder in zip(_names(resolved), folders, strict=True)
    ]
    for other in outputs[1:]:
        _check_source(outputs[0], other)
    found = list(evaluations)
    found += [Evaluation.read(folder / EVALUATION) for folder in folders if (folder / EVALUATION).is_file()]
    measured = _measured(dict(zip(resolved, outputs, strict=True)), found)
    return Comparison(tuple(outputs), measured, tuple(_warnings(outputs, measured)))


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell it from the others."""
    count = 1
    while True:
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
        count += 1


def _check_source(one: Output, other: Output) -> None:
    """Raise UserError unless both were made from the same dense model, as far as their reports tell."""
    first, second = one.report.source, other.report.source
    facts = ("architecture", "parameters", "blocks")
    for fact in facts:
        a, b = getattr(first, fact), getattr(second, fact)
        if a != b:
            raise UserError(
                f"{one.name} was made from {first.name} ({fact} {a}) and {other.name} from {second.name} ({fact} {b}): "
                "compare outputs of one model."
            )
    if first.name != second.name and _kept_alike(one.report, other.report) is not True:
        raise UserError(
            f"{one.name} was made from {first.name} and {other.name} from {second.name}: compare outputs of one model."
        )


def _kept_alike(one: Report, other: Report) -> bool | None:
    """Whether a tensor that both kept as it was has the same bytes in both; None where they kept none in common."""
    kept = {entry.name for entry in one.skipped} & {entry.name for entry in other.skipped}
    names = {name for name in one.tensors if name.removesuffix(".weight") in kept or name in kept}
    pairs = [(one.tensors[name], other.tensors[name]) for name in names if name in other.tensors]
    return any(a == b for a, b in pairs) if pairs else None


def _measured(outputs: dict[Path, Output], evaluations: Sequence[Evaluation]) -> tuple[Measured, ...]:
    by_context: dict[tuple[str, str | None], Measured] = {}
    for evaluation in (one for whole in evaluations for one in by_text(whole)):
        # A text that was edited since is another one under the same name.
        key = (evaluation.context, evaluation.text_sha256)
        here = by_context.setdefault(key, Measured(evaluation.context, evaluation.reference))
        for row in evaluation.candidates:
            if (output := _output_of(row, outputs)) is not None:
                here.rows.setdefault(output.name, row)
    used = [one for one in by_context.values() if one.rows]
    return tuple(sorted(used, key=lambda one: -len(one.rows)))


def by_text(evaluation: Evaluation) -> list[Evaluation]:
    """An evaluation for each of its texts, as if that had been the only one."""
    out = [evaluation]
    for index, text in enumerate(evaluation.reference.texts):
        out.append(
            replace(
                evaluation,
                text=text.text,
                windows=text.windows,
                text_sha256=None,
                reference=_on_text(evaluation.reference, index),
                candidates=tuple(_on_text(row, index) for row in evaluation.candidates),
            )
        )
    return out


def _on_text(row: CheckpointFigures, index: int) -> CheckpointFigures:
    figures = asdict(row.texts[index])
    return replace(
        row, texts=(), **{key: value for key, value in figures.items() if key not in ("text", "windows")}
    )


def _output_of(row: CheckpointFigures, outputs: dict[Path, Output]) -> Output | None:
    """The output that was measured: by its path, or where the folder has moved since, by its name alone."""
    exact = outputs.get(Path(row.path).resolve())
    if exact is not None:
        return exact
    last = row.path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    alike = [output for folder, output in outputs.items() if folder.name == last]
    return alike[0] if len(alike) == 1 else None


def _warnings(outputs: Sequence[Output], measured: Sequence[Measured]) -> list[str]:
    return [
        *_unmeasured(outputs, measured),
        *_source_warnings(outputs),
        *_within_error(measured[0] if measured else None),
        *_calibration_warnings(outputs),
        *_machine_warnings(outputs),
    ]


def _unmeasured(outputs: Sequence[Output], measured: Sequence[Measured]) -> list[str]:
    if not measured:
        return ["Nothing was measured of these: give the figures of `compress eval --save` with --eval."]
    main, *others = measured
    missing = [output.name for output in outputs if output.name not in main.rows]
    if not missing:
        return []
    elsewhere = [f"{words.listed(list(one.rows))} at {one.context}" for one in others]
    where = "; measured in another way, which does not compare: " + "; ".join(elsewhere) if elsewhere else ""
    return [f"{words.listed(missing)} {words.were(missing)} not measured at {main.context}{where}."]


def _source_warnings(outputs: Sequence[Output]) -> list[str]:
    first = outputs[0]
    out = []
    for other in outputs[1:]:
        a, b = first.report.source, other.report.source
        if a.name != b.name:
            out.append(
                f"The source of {first.name} is called {a.name} and that of {other.name} {b.name}; "
                "what both kept is the same."
            )
        elif _kept_alike(first.report, other.report) is False:
            out.append(
                f"What {first.name} and {other.name} kept of {a.name} differs: they were made from different weights, "
                "or a recipe changes these too."
            )
    return out


def _within_error(measured: Measured | None) -> list[str]:
    """Neighbours in KL that the windows do not tell apart."""
    if measured is None:
        return []
    ranked = sorted(
        (row.kl, row.kl_error, name)
        for name, row in measured.rows.items()
        if row.kl is not None and math.isfinite(row.kl) and row.kl_error is not None
    )
    return [
        f"{better} and {worse} differ by less than the standard error of their KL ({words.divergence(b - a)} against "
        f"{words.divergence(math.hypot(x, y))}): these windows do not rank them."
        for (a, x, better), (b, y, worse) in itertools.pairwise(ranked)
        if b - a < math.hypot(x, y)
    ]


def _calibration_warnings(outputs: Sequence[Output]) -> list[str]:
    texts: dict[str, list[str]] = {}
    for output in outputs:
        if (text := output.report.calibration) is not None:
            texts.setdefault(f"{text.data}, {text.samples} × {text.length} tokens", []).append(output.name)
    if len(texts) < 2:
        return []
    said = "; ".join(f"{words.listed(names)}: {text}" for text, names in texts.items())
    return [f"They were calibrated on different text: {said}."]


def _machine_warnings(outputs: Sequence[Output]) -> list[str]:
    places = {
        (machine.device, machine.threads, machine.system)
        for output in outputs
        if (machine := output.report.machine) is not None
    }
    return (
        ["They were made on different machines or threads: times do not compare."] if len(places) > 1 else []
    )


def noise_floors(outputs: Sequence[Output], rows: dict[str, CheckpointFigures]) -> tuple[SeedSpread, ...]:
    """What the seed alone changes: for each recipe that was run with several seeds and otherwise alike."""
    entries = []
    for output in outputs:
        report, row = output.report, rows.get(output.name)
        text = None if report.calibration is None else report.calibration.model_dump(mode="json")
        kl = None if row is None else row.kl
        entries.append((output.name, recipe_key(report.recipe, text), report.recipe_name, report.seed, kl))
    return seed_spreads(entries)
