"""A healing before it begins: all that is known, and the training that it comes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.sliced_source import CutSource
from compress.checkpoint.source import Source
from compress.checkpoint.writer import REPORT
from compress.formats.dense_source import open_dense
from compress.healing import dress
from compress.healing.data import HealingText
from compress.healing.guided import Guided
from compress.healing.loop import Training
from compress.healing.rules import Rules, check_penalties, rules_of
from compress.healing.shares import ALONE, Shares
from compress.healing.shelf import Shelf
from compress.healing.student import Student
from compress.healing.teachers import Cached, Live, Teaching
from compress.planning.methods import build
from compress.planning.plan import Plan
from compress.recipe.heal import Heal
from compress.report.assemble import versions
from compress.runtime.load import load
from compress.system.progress import Progress

STATE = "healing.safetensors"
"""The state of the training, in the unfinished output."""
SHELF = "healing.shelf"
"""The file of what is not in memory, there."""
CACHE = "teacher"
"""The folder of what the teacher said, there."""


@dataclass(frozen=True)
class Job:
    """All that is known before the training begins."""

    folder: Path
    compressed: Source
    source: Source
    plan: Plan
    heal: Heal
    teachers: tuple[Source, ...]
    text: HealingText
    device: torch.device
    dtype: torch.dtype
    seed: int
    progress: Progress

    @property
    def key(self) -> str:
        """A hash of all that decides the result."""
        facts = {
            "compressed": [content_fingerprint(self.compressed.files), _sha256(self.folder / REPORT)],
            "source": content_fingerprint(self.source.files),
            "teachers": [content_fingerprint(one.files) for one in self.teachers],
            "heal": self.heal.model_dump(mode="json", exclude={"data", "teachers", "offload"}),
            "tokens": [_digest(self.text.windows), _digest(self.text.held_out)],
            "settings": [str(self.dtype), self.device.type, self.seed, versions()],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def training_of(
    job: Job,
    student: Student,
    teacher: PreTrainedModel,
    parameters: Mapping[str, str],
    folder: Path,
    shares: Shares = ALONE,
) -> Training:
    """The training, with further teachers loaded or the answers of all on disk, behind that of the whole model if there is one.

    Args:
        job: all that is known.
        student: as the checkpoint is.
        teacher: the dense model.
        parameters: dense parameters in training → their tensors on disk.
        folder: of states and answers.
        shares: the processes that train together.
    """
    text, first = job.text, job.heal.dressing
    windows = text.windows[first * job.heal.batch :]
    rules = rules_of(job.heal, windows)
    check_penalties(rules.penalties, student.trained)
    others = [
        load(source.path, dtype=job.dtype, device=job.device, trust_remote_code=source.trust_remote_code)
        for source in job.teachers
    ]
    student.parameters.update({k: v for loss in rules.inner.losses for k, v in loss.begin(teacher).items()})
    teaching: Teaching = Live([teacher, *others])
    if job.heal.cache is not None:
        words = int(student.model.config.get_text_config().vocab_size)
        own = shares.own_places(rules.sizes or [rules.batch] * rules.steps)
        cached = Cached(
            folder / CACHE / shares.folder, min(job.heal.cache.k, words), words, job.heal.batch, own
        )
        cached.fill(teaching, windows, job.device)
        teaching = cached
    shares_of_target = (getattr(build("trainable", method), "guide", 0.0) for method in job.heal.train)
    if guide := max(shares_of_target):
        teaching = Guided(teaching, student, guide)
    shelf = Shelf(folder / SHELF if job.heal.offload else None)
    student.put_starts(shelf.place)
    training = Training(
        student,
        teacher,
        windows,
        text.held_out,
        rules,
        job.key,
        folder / STATE,
        job.progress,
        teaching,
        shelf,
        shares,
    )
    if first:
        live = replace(
            training, windows=text.windows[: first * job.heal.batch], teaching=Live([teacher, *others])
        )
        _dress(job, live, parameters, folder, training)
    if job.heal.cache is not None and training.keeps_held_out:
        teacher.to("meta")  # nothing asks it any more
    return training


def _dress(
    job: Job, first: Training, parameters: Mapping[str, str], folder: Path, training: Training
) -> None:
    """Train the whole model first, and begin at what it came to where that is better."""
    source = job.source
    assert isinstance(source, CutSource)  # the plan refuses others
    whole = open_dense(source.path, trust_remote_code=source.trust_remote_code)
    model = load(source.path, dtype=job.dtype, device=job.device, trust_remote_code=source.trust_remote_code)

    def make(student: Student, rules: Rules, path: Path) -> Training:
        return replace(
            first, student=student, rules=replace(rules, steps=job.heal.dressing, sizes=()), path=path
        )

    values = dress.dressed(source, parameters, whole, model, make, training.rules, folder)
    kept = (
        "is where healing begins"
        if dress.take_better(training, values)
        else "is left: the refitted one is nearer"
    )
    job.progress.note(f"the model that did without its pruned widths {kept}")


def _digest(tokens: torch.Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
