"""The texts of an evaluation: their files, cut into windows, and what has to be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from compress.assets import embedded_text
from compress.errors import UserError
from compress.evaluation.windows import Cut, read_documents
from compress.text.limits import check_token_ids, embedding_rows
from compress.text.records import Document

FOREIGN_WINDOWS = 16
"""Windows of the shipped prose that are measured beside texts of the user's."""


@dataclass(frozen=True)
class Texts:
    """The texts that are measured on.

    Attributes:
        files: of the texts; the first is for all figures.
        windows: of each, int64 ``[windows, length]``.
        notes: sentences for people.
    """

    files: tuple[Path, ...]
    windows: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def cut(
        cls,
        files: Sequence[Path],
        documents: Sequence[Sequence[Document]],
        cut: Cut,
        model: PreTrainedModel,
    ) -> Texts:
        """The windows of each text; a note where there are fewer than were asked for.

        Raises:
            UserError: a text is shorter than one window, or has a token beyond the embedding of ``model``.
        """
        windows = [cut.windows(text) for text in documents]
        notes = []
        for file, found in zip(files, windows, strict=True):
            check_token_ids(found, embedding_rows(model), file.name)
            if cut.limit is not None and len(found) < cut.limit:
                notes.append(
                    f"{file.name} holds {len(found)} windows of {cut.length} tokens, fewer than the {cut.limit} asked for."
                )
        return cls(tuple(files), tuple(windows), tuple(notes))

    def with_prose(self, cut: Cut, model: PreTrainedModel) -> Texts:
        """With a few windows of the shipped prose, a text of another domain, unless it is among the texts."""
        prose = embedded_text("prose")
        if prose in self.files:
            return self
        most = min(cut.limit or FOREIGN_WINDOWS, FOREIGN_WINDOWS)
        try:
            found = cut.windows(read_documents(prose), most)
            check_token_ids(found, embedding_rows(model), prose.name)
        except UserError as error:  # too short for such a window, or tokens that this model has not
            said = f"Nothing was measured on text of another domain: {error}"
            return replace(self, notes=(*self.notes, said))
        return replace(self, files=(*self.files, prose), windows=(*self.windows, found))

    def named(self) -> list[tuple[str, Tensor]]:
        """Name and windows of each text."""
        return [(file.name, found) for file, found in zip(self.files, self.windows, strict=True)]
