"""The checkpoints of an evaluation: their names, their folders, and the tokenizer that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.assets import EMBEDDED, embedded_model
from compress.checkpoint.source import Source, open_source
from compress.evaluation.size import folder_size
from compress.evaluation.windows import check_same_tokenizer
from compress.text.records import Document
from compress.text.tokenize import load_tokenizer

PROBE_CHARACTERS = 20_000
"""Two tokenizers are compared on so many characters of the text."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint: its label, the path as the user gave it, and what it holds."""

    name: str
    path: str
    source: Source

    @property
    def folder(self) -> Path:
        """The folder of its configuration and tokenizer."""
        return self.source.path

    @property
    def weights(self) -> Path:
        """What :func:`compress.evaluation.size.folder_size` takes: a GGUF file may lie outside the folder."""
        first = self.source.files[0]
        return first if first.suffix.lower() == ".gguf" else self.folder


class Opener(Protocol):
    """What opens a checkpoint by its path; see :func:`compress.checkpoint.source.open_source`."""

    def __call__(self, name_or_path: str | Path, *, trust_remote_code: bool = False) -> Source:
        """The source of a folder or a hub name."""
        ...


def open_subjects(
    paths: Sequence[str | Path], trust_remote_code: bool, open_checkpoint: Opener = open_source
) -> list[Subject]:
    """Open each checkpoint's folder; a name on the hub is downloaded into its cache."""
    sources = [
        open_checkpoint(
            embedded_model() if str(path) == EMBEDDED else path, trust_remote_code=trust_remote_code
        )
        for path in paths
    ]
    return [
        Subject(name, str(path), source)
        for name, path, source in zip(_names(paths), paths, sources, strict=True)
    ]


def common_tokenizer(
    subjects: Sequence[Subject], probe: str, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The reference's tokenizer, once it is sure that all others are the same."""
    first = load_tokenizer(subjects[0].folder, trust_remote_code=trust_remote_code)
    for subject in subjects[1:]:
        other = load_tokenizer(subject.folder, trust_remote_code=trust_remote_code)
        check_same_tokenizer(first, other, subject.path, probe)
    return first


def probe_text(documents: Sequence[Document]) -> str:
    """The beginning of the text, where it has not been tokenized already."""
    return next((text[:PROBE_CHARACTERS] for text in documents if isinstance(text, str)), "")


def parameter_count(path: str | Path, model: PreTrainedModel) -> int:
    """Numbers in the dense model: those it stores; where it is packed itself, those of its architecture."""
    size = folder_size(path)
    if size is not None and size.elements and getattr(model.config, "quantization_config", None) is None:
        return size.elements
    return int(model.num_parameters())


def _names(paths: Sequence[str | Path]) -> list[str]:
    """The last part of each path; the whole path for those that would be alike."""
    short = [Path(path).resolve().name if Path(path).is_dir() else str(path) for path in paths]
    return [str(path) if short.count(name) > 1 else name for name, path in zip(short, paths, strict=True)]
