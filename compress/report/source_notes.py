"""Sentences for the report: what to know of the source."""

from __future__ import annotations

from collections.abc import Iterator

from compress.checkpoint.source import Source


def source_notes(source: Source) -> Iterator[str]:
    """A sentence on a source that was quantized already."""
    if source.stored_as:
        yield (
            f"The source is quantized already ({source.stored_as}): its weights were decoded first, and every error is "
            "measured against the decoded weights."
        )
