"""Images in conversations: where a record names them, and how they are opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.text.records import Document, Messages

_KEYS = ("image", "url", "path")


def has_images(document: Document) -> bool:
    """Whether a document is a conversation with images in it."""
    return isinstance(document, Messages) and any(True for _ in _names(document))


def images_of(document: Messages, folder: Path) -> list[Any]:
    """Open the images of a conversation, in their order.

    Args:
        document: the conversation.
        folder: relative paths start there: the folder of the file that names them.

    Raises:
        UserError: an image is no file here or cannot be read, or Pillow is not installed.
    """
    try:
        pillow: Any = import_module("PIL.Image")  # an optional dependency
    except ImportError:
        raise UserError("Calibration with images needs the package Pillow: pip install pillow.") from None
    opened = []
    for name in _names(document):
        path = folder / str(name).removeprefix("file://")
        if not path.is_file():
            raise UserError(f"There is no image file {path}; images are read from files beside the text.")
        try:
            with pillow.open(path) as image:
                opened.append(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise UserError(f"The image {path} cannot be read ({str(error)[:120]}).") from None
    return opened


def _names(document: Messages) -> Iterator[Any]:
    for message in document.messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
                yield next((part[key] for key in _KEYS if part.get(key)), "")
