"""`compress plan`: what a run would do, without doing it."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

import compress as api
from compress.errors import UserError
from compress.system import units as words
from compress_cli import budgets, library, options
from compress_cli.display import print_json, screen, table

if TYPE_CHECKING:
    from compress.pipeline.budget_steps import BudgetPlan
    from compress.planning.plan import Plan


def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            help=options.MODEL_HELP, metavar="MODEL", show_default=False, callback=options.checkpoints
        ),
    ] = None,
    recipe: options.RecipeName = None,
    scheme: options.SchemeName = None,
    budget: budgets.Budget = None,
    bits: budgets.Bits = None,
    ratio: budgets.Ratio = None,
    fit: budgets.Fit = None,
    time: budgets.Time = None,
    runtime: budgets.RuntimeName = None,
    trials: budgets.Trials = None,
    data: options.CalibrationText = None,
    samples: options.Samples = None,
    length: options.Length = None,
    bos: options.Bos = None,
    seed: options.Seed = 0,
    set_: options.Settings = None,
    dtype: options.Precision = options.Dtype.auto,
    format: options.OutputFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
    weights: Annotated[bool, typer.Option("--weights", help="List every compressed weight too.")] = False,
    strict: options.Strict = False,
    memory: options.Memory = None,
    device_memory: options.DeviceMemory = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="First measure this machine, in some seconds; later plans estimate times by it.",
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Say what a run would compress and leave alone, how many bytes it would write and how much memory it needs.

    Reads only headers and configuration. The bytes are exact; the memory is an estimate, beyond what Python and its
    libraries take, and so is the time of a run on this machine when it does nothing else. A text that is given is counted, and
    refused where it is too short; where sizes depend on it (pruned blocks and widths, ranks or sparsities by layer) the model
    is run.

    Examples:

    `compress plan ./my-model -r w4-gptq`

    `compress plan ./my-model --scheme W8A8`

    `compress plan ./my-model -r w4-gptq --set quantize.group_size=64 --json`

    `compress plan ./my-model --budget 4GB` (what a search would choose from, and at what cost)

    `compress plan --measure` (this machine, for the times of later plans)
    """
    if measure:
        _measure()
    if model is None:
        if measure:
            return
        raise UserError("no model is named: compress plan MODEL -r RECIPE, or compress plan --measure alone")
    asked = budgets.Asked(budget, bits, ratio, fit, time, runtime, trials)
    if asked.given:
        asked.refuse_beside(
            recipe=recipe,
            scheme=scheme,
            set=set_,
            format=format,
            bos=bos,
            strict=strict or None,
            memory=memory,
            device_memory=device_memory,
        )
        given = api.plan_budget(
            model,
            **asked.arguments,
            data=data,
            samples=samples,
            length=length,
            trust_remote_code=trust_remote_code,
        )
        if json:
            print_json(given)
        else:
            _show_budget(given)
        return
    asked.refuse_alone()
    settings = options.settings(set_)
    chosen = options.recipe_of(recipe, scheme, settings)
    planned = api.plan(
        model,
        chosen,
        data=data,
        samples=samples,
        length=length,
        bos=bos,
        seed=seed,
        settings=settings,
        dtype=dtype.value,
        format=format.value if format is not None else None,
        trust_remote_code=trust_remote_code,
        strict=strict,
        memory=memory,
        device_memory=device_memory,
    )
    seconds, source = library.time_of(planned)
    if json:
        print_json({**planned.to_json(), "seconds": seconds, "seconds_from": source})
    else:
        _show(planned, weights=weights, time=(seconds, source))


def _measure() -> None:
    machine, path = library.measure_here()
    print(f"{machine.source}; kept in {path}", file=sys.stderr)


def _show_budget(planned: BudgetPlan) -> None:
    console = screen()
    console.print(
        f"[bold]{words.in_bytes(planned.source_bytes)} → at most {words.in_bytes(planned.budget)}[/] "
        f"({planned.budget} bytes of weight files, {words.figure(planned.bits)} bits over the whole model)"
    )
    console.print(f"runtime: {planned.runtime}; its smallest model takes {words.in_bytes(planned.smallest)}")
    if planned.copies:
        console.print("The model fits the budget as it is: it would be copied unchanged.")
        return
    console.print(
        f"search: {planned.candidates} candidates of {planned.units} weights, or groups that have to be alike"
    )
    if planned.experts:
        numbers = " and with ".join(map(str, planned.experts))
        console.print(f"experts: models with {numbers} of them in every block are searched, too")
    console.print(f"cost: about {words.figure(planned.cost, 1)} times the work of the run after it")


def _show(planned: Plan, *, weights: bool, time: tuple[float | None, str]) -> None:
    console = screen()
    ratio = planned.source_bytes / max(planned.total_bytes, 1)
    console.print(
        f"[bold]{words.in_bytes(planned.source_bytes)} → {words.in_bytes(planned.total_bytes)}[/] "
        f"({planned.total_bytes} bytes of weight files, {ratio:.2f} × smaller), "
        f"{words.figure(planned.bits_per_weight, 3)} bits per compressed weight, "
        f"{words.figure(planned.bits_per_weight_model, 3)} over the whole model"
    )
    if planned.outside_bytes:
        share = words.percent(planned.outside_bytes / max(planned.total_bytes, 1), 0)
        console.print(
            f"embeddings and head: {words.in_bytes(planned.outside_bytes)} ({planned.outside_bytes} bytes), {share} of it"
        )
    if planned.source_form:
        console.print(
            f"source: quantized already ({planned.source_form}), decoded while it is read", markup=False
        )
    console.print(f"format: {planned.format}, since {planned.format_reason}", markup=False)
    console.print(f"memory: about {words.in_bytes(planned.peak_memory)} beyond Python and its libraries")
    if planned.device_memory:
        console.print(f"accelerator: about {words.in_bytes(planned.device_memory)} of its memory")
    seconds, source = time
    if seconds is None:
        console.print(f"time: {source}")
    else:
        console.print(
            f"time: about {words.roughly(seconds)} on this machine; its figures are {source}",
            markup=False,
            soft_wrap=True,
        )
    if planned.promised is not None:
        console.print(f"promised: {planned.promised.note}", markup=False, soft_wrap=True)
    console.print(f"data: {'calibration text is needed' if planned.reads_text else 'none is needed'}")
    if planned.heal_note:
        console.print(f"heal: {planned.heal_note}", markup=False, soft_wrap=True)
    if planned.kv_note:
        console.print(planned.kv_note, markup=False)
    for note in planned.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if planned.coverage_note:
        console.print(f"[yellow]warning:[/] {planned.coverage_note}", soft_wrap=True)
    table("Compressed", _columns("weights", "parameters", "bytes"), _compressed(planned))
    if planned.skipped:
        table(
            "Left as it is",
            {"reason": "fold", "tensors": "right", "bytes": "right", "such as": "fold"},
            _skipped(planned),
        )
    if weights:
        rows = [
            [
                one.name,
                " × ".join(map(str, one.view.shape)),
                library.describe(one.layout, one.activations),
                _weight_bytes(one.tensors),
            ]
            for one in planned.weights
        ]
        table(
            "Every compressed weight",
            {"name": "fold", "shape": "left", "stored as": "left", "bytes": "right"},
            rows,
        )


def _columns(*figures: str) -> dict[str, str]:
    return {"kind": "left", "stored as": "left"} | dict.fromkeys(figures, "right")


def _compressed(planned: Plan) -> list[list[str]]:
    groups: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in planned.weights:
        row = groups[one.view.kind, library.describe(one.layout, one.activations)]
        row[0] += 1
        row[1] += one.numel
        row[2] += sum(spec.nbytes for spec in one.tensors.values())
    return [
        [kind, scheme, str(count), words.in_parameters(numel), words.in_bytes(nbytes)]
        for (kind, scheme), (count, numel, nbytes) in groups.items()
    ]


def _skipped(planned: Plan) -> list[list[str]]:
    groups: dict[str, list[Any]] = defaultdict(list)
    for one in planned.skipped:
        groups[one.reason].append(one)
    return [
        [reason, str(len(group)), words.in_bytes(sum(one.nbytes for one in group)), group[0].name]
        for reason, group in groups.items()
    ]


def _weight_bytes(tensors: Any) -> str:
    return words.in_bytes(sum(spec.nbytes for spec in tensors.values()))
