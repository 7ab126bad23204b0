"""Calibration windows of conversations with images, made by the processor that comes with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor

from compress.calibrate.corpus import Corpus
from compress.errors import UserError
from compress.text.documents import JSON_SUFFIXES, open_documents
from compress.text.images import has_images, images_of
from compress.text.records import Document, Messages

_PEEKED = 64
"""Documents that are looked at to find out whether a file has images."""


@dataclass(frozen=True)
class _Window:
    """The tokens of a conversation, int64 ``[length]``, and what its images are for the model."""

    tokens: Tensor
    inputs: Mapping[str, Tensor]


def names_images(data: str) -> bool:
    """Whether a calibration text is a file of conversations with images."""
    path = Path(data).expanduser()
    if path.suffix.lower() not in JSON_SUFFIXES or not path.is_file():
        return False
    return any(has_images(document) for document in islice(open_documents(path).each(), _PEEKED))


def load_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the processor of a checkpoint.

    Raises:
        UserError: there is none that loads here.
    """
    try:
        return AutoProcessor.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # processors are programs of many authors
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(
            f"{folder} has no processor that loads here ({first[:200]}); some need the packages pillow and torchvision: "
            "install them, or calibrate by text."
        ) from error


def load_image_corpus(
    data: str, processor: Any, filler: Tensor, *, samples: int, length: int, seed: int
) -> Corpus:
    """Make windows of conversations with images; text follows each one until the window is full.

    Args:
        data: a file of JSON documents; other documents than conversations with images are left out.
        processor: turns a conversation and its images into the model's inputs.
        filler: int64 ``[samples, length]``, windows of text.
        samples: how many windows; conversations are taken again where there are fewer.
        length: tokens in a window; conversations that are longer are left out.
        seed: decides the order.

    Raises:
        UserError: no conversation fits, or an image or the processor fails.
    """
    path = Path(data).expanduser()
    documents = [document for document in open_documents(path).each() if has_images(document)]
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    made: list[_Window] = []
    too_long = 0
    for index in order:
        if len(made) == samples:
            break
        window = _window(documents[index], processor, path)
        if len(window.tokens) > length:
            too_long += 1
        else:
            made.append(window)
    if not made:
        raise UserError(
            f"Every conversation with images in {data} is longer than {length} tokens: take a larger --length."
        )
    full = [_filled(window, text) for window, text in zip(islice(cycle(made), samples), filler, strict=False)]
    note = f"{len(made)} conversations with images for {samples} windows, each followed by text."
    if too_long:
        note += f" {too_long} are longer than {length} tokens and were left out."
    tokens = torch.stack([window.tokens for window in full])
    return Corpus(tokens, data, tokens.numel(), note, images=tuple(window.inputs for window in full))


def _window(document: Document, processor: Any, path: Path) -> _Window:
    assert isinstance(document, Messages)
    images = images_of(document, path.parent)
    try:
        text = processor.apply_chat_template([dict(m) for m in document.messages], tokenize=False)
        found = processor(text=[text], images=images, return_tensors="pt")
        inputs = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        tokens = inputs.pop("input_ids")[0]
    except Exception as error:  # as above
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(f"The processor refuses a conversation of {path} ({first[:200]}).") from error
    inputs.pop("attention_mask", None)
    return _Window(tokens, inputs)


def _filled(window: _Window, text: Tensor) -> _Window:
    """The window with text behind its conversation, up to the length of ``text``."""
    own, length = len(window.tokens), len(text)
    inputs = dict(window.inputs)
    for name, value in inputs.items():
        if value.shape == (1, own):  # one number for each token, zero for text
            inputs[name] = torch.nn.functional.pad(value, (0, length - own))
    return _Window(torch.cat([window.tokens, text[: length - own]]), inputs)


def image_bytes(images: Sequence[Mapping[str, Tensor]]) -> bytes:
    """What tells one set of images from another: the bytes of all inputs."""
    return b"".join(
        name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for inputs in images
        for name, value in sorted(inputs.items())
    )
