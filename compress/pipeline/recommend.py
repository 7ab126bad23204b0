"""Which shipped recipe fits a size and a server, from plans alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.allocate.amounts import Amount, bytes_of
from compress.assets import EMBEDDED, embedded_model
from compress.errors import UserError
from compress.formats.dense_source import open_dense
from compress.formats.served import Served, measured
from compress.formats.servers import servers_of
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.budget_space import model_size
from compress.planning.duration import work_of
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe
from compress.recipe.registry import did_you_mean
from compress.score.statistics import GRADIENT_NEEDS
from compress.system.device import resolve_device
from compress.system.machine import Machine
from compress.system.rate import machine_for
from compress.system.units import in_bytes

LADDER = (
    "w8", "q8_0", "q6_k", "q5_k_m", "best-w4", "w4-gptq", "q4_k_m", "nf4-gptq", "best-w3", "q3_k_m", "w3-gptq", "q2_k",
    "best-w2",
)  # fmt: skip
"""Recipes from the nearest to the original downwards; of equal bits the nearer one comes first."""
RUNTIMES = ("transformers", "vllm", "llama.cpp")


@dataclass(frozen=True)
class Candidate:
    """A recipe, what its plan says, and whether it fits.

    Attributes:
        recipe: its name.
        when: what it is for.
        nbytes: of the weight files, exact.
        memory: bytes that a run needs beyond Python and its libraries, an estimate.
        seconds: that a run takes on this machine when it does nothing else, an estimate; None where there is none.
        format: of the output.
        servers: that were measured to read what this recipe writes.
        unmeasured: servers that should read it, by their documentation and code, and were not given it.
        needs: what it reads: ``"nothing"``, ``"calibration text"`` or ``"gradients"`` (a pass over the model backwards).
        objection: why it does not fit; None where it does.
    """

    recipe: str
    when: str
    nbytes: int
    memory: int
    format: str
    servers: tuple[str, ...]
    needs: str
    objection: str | None = None
    seconds: float | None = None
    unmeasured: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recommendation:
    """The first recipe that fits, if there is one, and all that were planned, the nearest to the original first.

    Attributes:
        chosen: the recipe to take.
        why: in a sentence.
        budget: bytes that the weight files may have; None for no limit.
        candidates: all recipes of :data:`LADDER` that the model takes.
    """

    chosen: Candidate | None
    why: str
    budget: int | None
    candidates: tuple[Candidate, ...]


def recommend(
    model: str | Path,
    *,
    amount: Amount | None = None,
    runtime: str | None = None,
    trust_remote_code: bool = False,
) -> Recommendation:
    """The recipe nearest to the original whose output fits; from headers and configuration alone.

    Args:
        model: a folder, a hub name or ``"embedded"``.
        amount: what the weight files may take (:func:`compress.allocate.amounts.parse_place`); None for no limit.
        runtime: what has to read the output, of :data:`RUNTIMES`: only recipes are chosen whose output it was measured to read
            (``docs/servers.md``); None for any.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        UserError: the model cannot be read, or the runtime is not known.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise UserError(f"there is no runtime '{runtime}'{did_you_mean(runtime, RUNTIMES)}")
    path = embedded_model() if str(model) == EMBEDDED else model
    skeleton = open_skeleton(open_dense(path, trust_remote_code=trust_remote_code))
    budget = None if amount is None else bytes_of(amount, model_size(skeleton))
    machine = machine_for(resolve_device("auto"), skeleton.dtype)
    candidates = tuple(_candidate(skeleton, name, budget, runtime, machine) for name in LADDER)
    chosen = next((one for one in candidates if one.objection is None), None)
    return Recommendation(chosen, _why(chosen, candidates, amount, budget, runtime), budget, candidates)


def _candidate(
    skeleton: Skeleton, name: str, budget: int | None, runtime: str | None, machine: Machine
) -> Candidate:
    recipe = Recipe.load(name)
    try:
        plan = make_plan(skeleton, recipe)
    except UserError as error:
        return Candidate(name, recipe.when, 0, 0, recipe.format, (), "nothing", str(error))
    claimed = servers_of(plan.format, plan.weights)
    said = {server: measured(name, plan.format, server) for server in claimed}
    servers = tuple(server for server in claimed if said[server] == "read")
    objection = None if runtime is None else _unread(runtime, said.get(runtime))
    if objection is None and budget is not None and plan.total_bytes > budget:
        objection = f"{in_bytes(plan.total_bytes - budget)} too large"
    work = work_of(skeleton, plan)
    return Candidate(
        name,
        recipe.when,
        plan.total_bytes,
        plan.peak_memory,
        plan.format,
        servers,
        _needs(plan),
        objection,
        None if work is None else work.seconds(machine),
        tuple(server for server in claimed if said[server] == "not measured"),
    )


def _unread(runtime: str, said: Served | None) -> str | None:
    """Why a recipe is not for a runtime; None where it was measured that it is. ``said`` is None where it claims not to be."""
    if said == "read":
        return None
    return {
        "failed": f"{runtime} failed to read it when it was measured",
        "not measured": f"not measured in {runtime}",
    }.get(said or "", f"{runtime} does not read it")


def _needs(plan: Plan) -> str:
    if any(weight.needs & GRADIENT_NEEDS for weight in plan.weights):
        return "gradients"
    return "calibration text" if plan.reads_text else "nothing"


def _why(
    chosen: Candidate | None,
    candidates: Sequence[Candidate],
    amount: Amount | None,
    budget: int | None,
    runtime: str | None,
) -> str:
    """The choice, or that there is none, in a sentence."""
    read = "" if runtime is None else f" that {runtime} was measured to read"
    limit = (
        ""
        if amount is None or budget is None
        else f" within {amount.text} ({in_bytes(budget)} of weight files)"
    )
    if chosen is not None:
        return f"{chosen.recipe} is the nearest to the original of the shipped recipes{read}{limit}: {in_bytes(chosen.nbytes)}"
    sizes = [one.nbytes for one in candidates if one.nbytes and (runtime is None or runtime in one.servers)]
    least = f"; the smallest takes {in_bytes(min(sizes))}" if sizes else ""
    failed = next((one.objection for one in candidates if not one.nbytes and one.objection), None)
    unplanned = f"; not all could be planned: {failed}" if failed else ""
    return (
        f"no shipped recipe{read} fits{limit}{least}{unplanned}; "
        "compress run MODEL --budget searches weight by weight"
    )
