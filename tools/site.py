"""Hooks of MkDocs: a page for each method of the registry, and names for links out of `docs/`: the site holds pages alone."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # MkDocs loads this file by its path

from compress.recipe.registry import SOLVERS, TRANSFORMS

try:
    from mkdocs.structure.files import File
except ImportError:  # the tests read the pages without MkDocs
    File = None

METHODS = "Methods"
"""The section of the navigation that the methods' pages are added to."""
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\((\.\./[^)\s#]*)(#[^)\s]*)?\)")


def method_pages() -> dict[str, tuple[str, str]]:
    """Path of a page → its title and its text, for every solver and every transform, by title."""
    pages = {}
    for key, table in (("solver", SOLVERS), ("transforms", TRANSFORMS)):
        for name, home in table.items():
            module, _, title = home.partition(":")
            options = [f"members: [{title}]", "show_root_heading: false", "show_root_toc_entry: false"]
            directive = "\n".join(
                [f"::: {module}", "    options:", *(f"      {option}" for option in options)]
            )
            text = f"# {title}\n\n`{key}: {name}` in a recipe.\n\n{directive}\n"
            pages[f"methods/{name.replace('_', '-')}.md"] = (title, text)
    return dict(sorted(pages.items(), key=lambda item: item[1][0].lower()))


def on_config(config: Any) -> Any:
    """Add the methods' pages to the navigation."""
    section = next(entry for entry in config.nav if METHODS in entry)
    section[METHODS] = [*section[METHODS], *({title: path} for path, (title, _) in method_pages().items())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the methods' pages themselves."""
    for path, (_, text) in method_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


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
