"""Hooks of MkDocs: links from a page to files beside `docs/` become their names, since the site holds the pages alone."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\((\.\./[^)\s#]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links that lead out of the folder of pages by the link's text and the file's place in the repository."""
    return outside_links_as_text(markdown, page.file.src_uri)


def outside_links_as_text(markdown: str, page: str) -> str:
    """The text of ``page`` (its path under ``docs/``), with no link that leads out of ``docs/``."""

    def text(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link[2]))
        if target.startswith("docs/"):
            return link[0]
        shown = link[1] if link[1].startswith("`") or "/" in link[1] else f"{link[1]} (`{target}`)"
        return shown

    return _LINK.sub(text, markdown)
