"""The public functions, wired to what does the work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.allocate.amounts import parse_size
from compress.checkpoint.cold import pack, unpack
from compress.checkpoint.integrity import check_hashes
from compress.errors import UserError
from compress.evaluation import Evaluation
from compress.evaluation import evaluate as _evaluate
from compress.evaluation.holdout import note_asked, text_hash
from compress.evaluation.windows import text_files
from compress.formats.dense_source import open_any, open_dense
from compress.healing.stage import heal
from compress.pipeline import steps
from compress.pipeline.budget_steps import compress_to_budget, plan_budget
from compress.pipeline.export import export
from compress.pipeline.hub import Pushed, push_to_hub
from compress.pipeline.python_arguments import Model, RecipeLike, check_options, plain_arguments
from compress.pipeline.run import Result
from compress.pipeline.sweep import sweep
from compress.planning.plan import Plan
from compress.report.schema import Report
from compress.runtime.load import load
from compress.system.device import dtype_name
from compress.system.progress import Progress, ProgressEvent, listener_of
from compress.verification.checkpoint import VerifyReport
from compress.verification.checkpoint import verify as _verify
from compress.verification.fresh_process import check_opens
from compress.verification.outputs import check_logits

Dtype = str | torch.dtype
Listener = Progress | Callable[[ProgressEvent], None] | None


@dataclass(frozen=True)
class Compressed:
    """The result of :func:`compress` without an output folder: the packed model, what was planned, and the report."""

    model: PreTrainedModel
    plan: Plan
    report: Report

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame``: a row for each compressed weight, by name."""
        return self.report.to_frame()


def plan(
    model: Model,
    recipe: RecipeLike,
    *,
    data: Any = None,
    samples: int | None = None,
    length: int | None = None,
    bos: bool | None = None,
    seed: int = 0,
    dtype: Dtype = "auto",
    format: str | None = None,
    trust_remote_code: bool = False,
    settings: Mapping[str, Any] | None = None,
    strict: bool = False,
    memory: str | int | None = None,
    device_memory: str | int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Plan:
    """Dry run: what :func:`compress` would do, from headers and configuration alone; the arguments are the same.

    Where a recipe prunes the model's shape or chooses ranks or sparsities by layer, the sizes depend on data: the model is
    then run here, on the CPU, which takes as long as in a run.

    Raises:
        UserError: whatever would stop the run before its first weight.
    """
    check_options(
        format=format,
        settings=settings,
        memory=memory,
        device_memory=device_memory,
        bos=bos,
        samples=samples,
        length=length,
    )
    with plain_arguments(model, recipe, data, tokenizer) as given:
        return steps.plan(
            given.model,
            given.recipe,
            data=given.data,
            samples=samples,
            length=length,
            bos=bos,
            seed=_whole(seed, "seed"),
            dtype=dtype_name(dtype),
            format=format,
            trust_remote_code=trust_remote_code,
            settings=settings,
            strict=strict,
            memory=_bytes(memory),
            device_memory=_bytes(device_memory, "--device-memory"),
        )


@overload
def compress(model: Model, recipe: RecipeLike, out: str | Path, **options: Any) -> Result: ...
@overload
def compress(model: Model, recipe: RecipeLike, out: None = None, **options: Any) -> Compressed: ...
def compress(  # type: ignore[misc]  # the overloads leave the options to this signature
    model: Model,
    recipe: RecipeLike,
    out: str | Path | None = None,
    *,
    data: Any = None,
    samples: int | None = None,
    length: int | None = None,
    bos: bool | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: Dtype = "auto",
    format: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Listener = None,
    gradients: str | Path | None = None,
    strict: bool = False,
    memory: str | int | None = None,
    device_memory: str | int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Result | Compressed:
    """Compress a Hugging Face model and verify what was written.

    Args:
        model: a folder, a hub name, ``"embedded"`` for the model that ships with the package, or a loaded transformers
            model, which is first written to a temporary folder.
        recipe: a shipped recipe's name, a YAML file, a mapping as such a file holds it, or a
            :class:`~compress.recipe.recipe.Recipe`.
        out: the folder to make; an unfinished run with the same arguments is continued. ``None`` returns the packed model.
        data: calibration data in place of the recipe's: a file, a hub dataset, ``"embedded"``, or an iterable of strings, chat
            messages, token ids, records or batches (:func:`compress.text.given.write_documents`).
        samples, length: how many calibration windows, of how many tokens; the recipe's own if ``None``.
        bos: whether every window begins with the BOS token; as the tokenizer does by itself if ``None``.
        seed: decides which windows are drawn, and all else that is drawn.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …: where blocks run and weights are solved.
        dtype: ``"auto"`` (the model's own), ``"bf16"``, ``"fp16"``, ``"fp32"`` or torch's: what blocks are computed in.
        format: ``"auto"``, ``"compressed-tensors"``, ``"native"``, ``"dense"``, …; the recipe's own if ``None``.
        overwrite: replace ``out`` if it exists, once the new one is verified.
        restart: discard an unfinished run into ``out`` that was begun with other arguments; otherwise it is refused.
        trust_remote_code: run Python code that comes with the checkpoint.
        settings: changes to the recipe by dotted key, such as ``{"quantize.group_size": 64}``.
        progress: a function that is called with a :class:`~compress.system.progress.ProgressEvent` as the run advances, or a
            :class:`~compress.system.progress.Progress`.
        gradients: a folder that keeps gradient moments, for other runs over the same model, data and seed.
        strict: refuse a model of which a block's matrix parameters would be compressed to less than 95%.
        memory: what the process may hold, Python and its libraries among it: a size such as ``"8GiB"`` or bytes. The run gives
            up time for it, or is refused with the smallest size that would do.
        device_memory: the same of an accelerator's memory.
        tokenizer: of a loaded model; ``None`` opens the one of the checkpoint that it was loaded from.

    Returns:
        The folder, the plan and the report; without ``out`` the packed model in the place of the folder.

    Raises:
        UserError: anything that the caller can mend, in one sentence; nothing that existed is touched.
    """
    if out is not None and not isinstance(out, str | os.PathLike):
        raise UserError(f"out is the folder to make, or None, not {type(out).__name__}")
    check_options(
        format=format,
        gradients=gradients,
        settings=settings,
        memory=memory,
        device_memory=device_memory,
        bos=bos,
        samples=samples,
        length=length,
    )
    with plain_arguments(model, recipe, data, tokenizer) as given:

        def made(folder: str | Path) -> Result:
            return steps.compress(
                given.model,
                given.recipe,
                folder,
                data=given.data,
                samples=samples,
                length=length,
                bos=bos,
                seed=_whole(seed, "seed"),
                device=str(device),
                dtype=dtype_name(dtype),
                format=format,
                overwrite=overwrite,
                restart=restart,
                trust_remote_code=trust_remote_code,
                settings=settings,
                progress=listener_of(progress),
                gradients=gradients,
                strict=strict,
                memory=_bytes(memory),
                device_memory=_bytes(device_memory, "--device-memory"),
            )

        if out is not None:
            return made(out)
        with tempfile.TemporaryDirectory(prefix="compress-") as folder:
            result = made(Path(folder) / "model")
            packed = load(result.out, device=device, trust_remote_code=trust_remote_code)
        return Compressed(packed, result.plan, result.report)


def _bytes(memory: str | int | None, option: str = "--memory") -> int | None:
    return parse_size(memory, option) if isinstance(memory, str) else memory


def evaluate(
    reference: str | Path,
    candidates: str | Path | Sequence[str | Path] = (),
    *,
    text: str | Path | Sequence[str | Path],
    length: int = 2048,
    limit: int | None = None,
    bos: bool | None = None,
    dtype: Dtype = "bf16",
    device: str | torch.device = "auto",
    batch_size: int | None = None,
    speed: bool = True,
    tasks: Sequence[str] = (),
    include_path: str | Path | None = None,
    task_limit: int | None = None,
    foreign: bool = False,
    calibration: str | Path | None = None,
    prompts: int = 0,
    needle: bool = False,
    trust_remote_code: bool = False,
    check: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure checkpoints side by side: perplexity, KL to the reference, agreement, bytes, speed, tasks.

    How often an output of ours was measured on which text is counted in its folder, in ``holdout.json``.

    Args:
        reference: the dense model: a folder, a hub name, or ``"embedded"``.
        candidates: a compressed checkpoint, or several; may be empty.
        text: a UTF-8 text file, a ``.jsonl`` or ``.json`` file of documents, ``"embedded"`` for the shipped held-out text or
            ``"prose"`` for shipped English prose; or several of these, of which the first is for all figures and the others for
            quality alone.
        length: context length in tokens; shortened, with a note, to the longest that all models take.
        limit: number of windows; ``None`` takes the whole text.
        bos: begin each window with the BOS token; ``None`` does as the tokenizer does by itself.
        dtype: what the models compute in; all figures are computed in fp32.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …
        batch_size: windows at once; ``None`` chooses by the size of the logits.
        speed: measure prefill and decoding too.
        tasks: names of lm-evaluation-harness tasks.
        include_path: a folder of task files.
        task_limit: examples of each task; ``None`` takes all.
        foreign: measure on windows of the shipped prose, too: a text of another domain than most calibration.
        calibration: the calibration text, to tell by measured coverage which texts are of its domain; ``None`` takes the
            shipped one where an output was calibrated on it.
        prompts: beginnings of windows that every model continues greedily: repetition, agreement, recall, and the text itself.
        needle: hide a number in a context as long as the model takes, up to 4096 tokens.
        trust_remote_code: run Python code that comes with a checkpoint.
        check: first hold every tensor of the candidates against the hashes of their ``compress.json``.
        progress: called with a checkpoint's name, the windows done and all windows.

    Raises:
        UserError: a text that is missing, empty or shorter than one window, an unknown dtype, or a candidate with another
            tokenizer or vocabulary than the reference.
    """
    for name, value in (
        ("length", length),
        ("limit", limit),
        ("batch_size", batch_size),
        ("prompts", prompts),
    ):
        if value is not None:
            _whole(value, name)
    several = [_path(one, "candidates") for one in _listed(candidates)]
    texts = [_path(one, "text") for one in _listed(text)]
    for path in several if check else ():
        check_hashes(open_any(path, trust_remote_code=trust_remote_code))
    figures = _evaluate(
        reference,
        several,
        text=texts,
        load=load,
        open_checkpoint=open_any,
        length=length,
        limit=limit,
        bos=bos,
        dtype=dtype_name(dtype),
        device=device,
        batch_size=batch_size,
        speed=speed,
        tasks=_listed(tasks),
        include_path=include_path,
        task_limit=task_limit,
        foreign=foreign,
        calibration=calibration,
        prompts=prompts,
        needle=needle,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    asked = {text_hash(file): file.name for file in text_files(texts)}
    for path in several:
        note_asked(Path(path), asked)
    return figures


def _listed(value: Any) -> list[Any]:
    """The items of a list or tuple; anything else as the only item."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _path(value: Any, name: str) -> str | Path:
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} is a path or a name, not {type(value).__name__}")
    return value if isinstance(value, str) else Path(value)


def _whole(value: Any, name: str) -> int:
    if type(value) is not int:
        raise UserError(f"{name} is a whole number, not {type(value).__name__}")
    return value


def verify(
    out: str | Path, source: str | Path, *, trust_remote_code: bool = False, fresh_process: bool = False
) -> VerifyReport:
    """Check a compressed checkpoint against its source.

    Nothing lost, renamed or left unpacked; every tensor that was to stay as it was byte-identical; every byte as it was
    written; sizes as planned; and the reloaded blocks compute what the decoded weights do.

    Args:
        out: the compressed checkpoint.
        source: the checkpoint that it was made from: a folder, a hub name or ``"embedded"``.
        trust_remote_code: run Python code that comes with the checkpoint.
        fresh_process: also open it with transformers in a process of its own, which takes memory for the whole model, twice.

    Raises:
        UserError: the first thing that is wrong.
    """
    opened = open_dense(source, trust_remote_code=trust_remote_code)
    return _verify(
        _path(out, "out"), opened, checks=[check_logits, check_opens] if fresh_process else [check_logits]
    )


__all__ = [
    "Compressed",
    "Pushed",
    "Result",
    "compress",
    "compress_to_budget",
    "evaluate",
    "export",
    "heal",
    "load",
    "pack",
    "plan",
    "plan_budget",
    "push_to_hub",
    "sweep",
    "unpack",
    "verify",
]
