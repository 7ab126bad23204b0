"""The order of the steps: checkpoint → calibrate → score → solve → export. Nothing else knows it; the blocks follow in
:mod:`compress.pipeline.run`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from compress.allocate.sensitivity import Sensitivity, chooses_sizes, needs_sensitivity_pass, sensitivity_pass
from compress.assets import EMBEDDED, embedded_model
from compress.checkpoint.source import Source
from compress.checkpoint.writer import Writer
from compress.formats.dense_source import open_dense
from compress.models.skeleton import Skeleton, open_skeleton
from compress.pipeline.calibration import draw_corpus, fit_recipe
from compress.pipeline.job import Job
from compress.pipeline.run import Result, Run
from compress.planning.make import make_plan
from compress.planning.plan import Plan, fingerprint
from compress.prune.depth import choose_blocks, without_blocks
from compress.prune.width import parts_of, width_pruned
from compress.recipe.recipe import Recipe
from compress.system.device import resolve_device, resolve_dtype
from compress.system.monitor import Monitor, keep_little_free_memory
from compress.system.progress import Progress, Silent


def plan(
    model: str | Path,
    recipe: str | Path | Recipe,
    *,
    samples: int | None = None,
    length: int | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    format: str | None = None,
    trust_remote_code: bool = False,
    data: str | None = None,
    bos: bool | None = None,
    seed: int = 0,
) -> Plan:
    """What :func:`compress` would do, from headers and configuration alone; the arguments are the same.

    Where a recipe chooses ranks or sparsities by layer, the sizes depend on data: the sensitivity pass over the dense model is
    then run here, on the CPU, and takes as long as in a run.

    Raises:
        UserError: whatever would stop the run before its first weight.
    """
    source = _open(model, trust_remote_code)
    chosen = _recipe(recipe, settings, data=data, samples=samples, length=length, bos=bos)
    skeleton = open_skeleton(source)
    chosen, _ = fit_recipe(chosen, skeleton)
    compute = resolve_dtype(dtype, skeleton.dtype, "cpu")
    here, near = torch.device("cpu"), Path(tempfile.gettempdir())
    skeleton = _shortened(skeleton, chosen, seed, here, compute)
    with ExitStack() as stack:
        skeleton = stack.enter_context(_width_pruned(skeleton, chosen, seed, here, compute, near))
        planned = make_plan(skeleton, chosen, format=format, dtype=compute)
        if not chooses_sizes(planned):
            return planned
        tokens = draw_corpus(skeleton, chosen, seed).tokens
        sensitivity = stack.enter_context(
            sensitivity_pass(skeleton, planned, tokens, device=here, dtype=compute, seed=seed, near=near)
        )
        return make_plan(
            skeleton,
            chosen,
            format=format,
            dtype=compute,
            ranks=sensitivity.ranks,
            sparsities=sensitivity.sparsities,
        )


def compress(
    model: str | Path,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    data: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    bos: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    format: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    gradients: str | Path | None = None,
) -> Result:
    """Compress a Hugging Face checkpoint and verify what was written.

    Args:
        model: a folder, a hub name, or ``"embedded"`` for the model that ships with the package.
        recipe: a shipped recipe's name, a YAML file, or a :class:`~compress.recipe.Recipe`.
        out: the folder to make. An unfinished run with the same arguments is continued.
        data: calibration text in place of the recipe's: a file, a hub dataset or ``"embedded"``.
        samples, length: how many calibration windows, of how many tokens; the recipe's own if ``None``.
        bos: whether every window begins with the BOS token; as the tokenizer does by itself if ``None``.
        seed: decides which windows are drawn, and all else that is drawn.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …: where blocks run and weights are solved.
        dtype: ``"auto"`` (the model's own), ``"bf16"``, ``"fp16"`` or ``"fp32"``: what blocks are computed in.
        format: ``"auto"``, ``"compressed-tensors"``, ``"native"`` or ``"dense"``; the recipe's own if ``None``.
        overwrite: replace ``out`` if it exists, once the new one is verified.
        trust_remote_code: run Python code that comes with the checkpoint.
        settings: changes to the recipe by dotted key, such as ``{"quantize.group_size": 64}``.
        progress: is told where the run stands.
        gradients: a folder that keeps what gradients tell, for other runs over the same model, data and seed.

    Raises:
        UserError: anything that the user can mend, in one sentence; nothing that existed is touched.
    """
    keep_little_free_memory()
    source = _open(model, trust_remote_code)
    chosen = _recipe(recipe, settings, data=data, samples=samples, length=length, bos=bos)
    skeleton = open_skeleton(source)
    chosen, shortened = fit_recipe(chosen, skeleton)
    target = resolve_device(device)
    compute = resolve_dtype(dtype, skeleton.dtype, target.type)
    skeleton = _shortened(skeleton, chosen, seed, target, compute)
    listener = progress or Silent()
    near = Path(out).absolute().parent
    with ExitStack() as stack:
        monitor = stack.enter_context(Monitor())
        if chosen.width_pruning is not None:
            listener.step("prune")
            with monitor.step("prune"):
                skeleton = stack.enter_context(_width_pruned(skeleton, chosen, seed, target, compute, near))
        source = skeleton.source
        planned = make_plan(skeleton, chosen, format=format, dtype=compute)
        sensitivity = Sensitivity()
        with monitor.step("data"):
            corpus = (
                draw_corpus(skeleton, chosen, seed, shortened)
                if planned.needs_data or needs_sensitivity_pass(planned)
                else None
            )
        if corpus is not None and needs_sensitivity_pass(planned):
            listener.step("sensitivity")
            options: dict[str, Any] = {"device": target, "dtype": compute, "seed": seed, "near": near}
            options["keep"] = None if gradients is None else Path(gradients)
            with monitor.step("sensitivity"):
                sensitivity = stack.enter_context(
                    sensitivity_pass(skeleton, planned, corpus.tokens, **options)
                )
            planned = make_plan(
                skeleton,
                chosen,
                format=format,
                dtype=compute,
                ranks=sensitivity.ranks,
                sparsities=sensitivity.sparsities,
            )
        job = Job(skeleton, planned, target, compute, seed, monitor, listener, sensitivity)
        run = Run(job, corpus)
        identity = fingerprint(planned, source, **run.identity())
        with Writer(out, planned.shards, source=source, fingerprint=identity, overwrite=overwrite) as writer:
            return run.carry_out(writer)


def _open(model: str | Path, trust_remote_code: bool) -> Source:
    path = embedded_model() if str(model) == EMBEDDED else model
    return open_dense(path, trust_remote_code=trust_remote_code)


def _recipe(recipe: str | Path | Recipe, settings: Mapping[str, Any] | None, **calibrate: Any) -> Recipe:
    given = {f"calibrate.{key}": value for key, value in calibrate.items() if value is not None}
    changes = {**(settings or {}), **given}
    return recipe.with_settings(changes) if isinstance(recipe, Recipe) else Recipe.load(recipe, changes)


def _shortened(
    skeleton: Skeleton, recipe: Recipe, seed: int, device: torch.device, dtype: torch.dtype
) -> Skeleton:
    """The model without the blocks that the recipe drops."""
    if recipe.depth_pruning is None:
        return skeleton
    tokens = draw_corpus(skeleton, recipe, seed).tokens
    wanted = recipe.depth_pruning
    dropped = choose_blocks(skeleton, tokens, wanted.blocks, wanted.by, device=device, dtype=dtype)
    return open_skeleton(without_blocks(skeleton.source, dropped))


@contextmanager
def _width_pruned(
    skeleton: Skeleton, recipe: Recipe, seed: int, device: torch.device, dtype: torch.dtype, near: Path
) -> Iterator[Skeleton]:
    """The model with the widths that the recipe leaves it; what was fitted anew lies in ``near`` as long as the context."""
    wanted = recipe.width_pruning
    parts = parts_of(skeleton, neuron_share=wanted.neurons, group_share=wanted.groups) if wanted else ()
    if not parts:
        yield skeleton
        return
    tokens = draw_corpus(skeleton, recipe, seed).tokens
    near.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".prune-width-", dir=near) as folder:
        options: dict[str, Any] = {"device": device, "dtype": dtype, "folder": Path(folder), "seed": seed}
        allocate = wanted.allocate if wanted else "uniform"
        source = width_pruned(skeleton, parts, tokens, allocate=allocate, **options)
        yield open_skeleton(source)
