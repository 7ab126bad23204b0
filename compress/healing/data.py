"""The windows that are trained on, and those that judge, drawn apart from each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from compress.assets import EMBEDDED
from compress.calibrate.corpus import load_apart
from compress.calibrate.image_corpus import names_images
from compress.calibrate.text_length import check_two_windows
from compress.errors import UserError
from compress.healing.samplers.base import Selecting
from compress.models.architecture import require_next_token_loss
from compress.models.skeleton import Skeleton
from compress.planning.methods import build
from compress.recipe.heal import Heal
from compress.recipe.recipe import Recipe
from compress.runtime.load import load
from compress.system.memory import available_memory
from compress.system.units import in_bytes
from compress.text.limits import check_token_ids, embedding_rows, fit_length, reserved_positions
from compress.text.tokenize import load_tokenizer

TOKEN_BYTES = 8
"""Of a token in memory, int64."""


@dataclass(frozen=True)
class HealingText:
    """Windows of a text.

    Attributes:
        windows: int64 ``[steps × batch, length]``, to train on.
        held_out: int64 ``[windows, length]``, of the text's end.
        name: of the text, without its folder.
        notes: sentences for people.
    """

    windows: Tensor
    held_out: Tensor
    name: str
    notes: tuple[str, ...]


def check_healing_text(skeleton: Skeleton, heal: Heal, data: str, bos: bool | None = None) -> None:
    """Refuse a text that is too short to heal on, before any expensive work.

    Args:
        skeleton: the dense model; its source has the tokenizer.
        heal: says how long the windows are.
        data: the text.
        bos: whether every window begins with the BOS token; as the tokenizer does by itself if None.

    Raises:
        UserError: the text has less than two windows, or the text or the tokenizer is missing or damaged.
    """
    if names_images(data):
        raise _images(data)
    source = skeleton.source
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    check_two_windows(data, tokenizer, length=_length(skeleton, heal)[0], bos=bos)


def _length(skeleton: Skeleton, heal: Heal) -> tuple[int, str]:
    """Tokens in a window, and a sentence where that is less than was asked for."""
    return fit_length(skeleton.model.config, heal.length, reserved_positions(skeleton.model))


def _images(data: str) -> UserError:
    return UserError(f"heal: {data} names images, and training reads text alone: give heal.data a text")


def healing_text(
    skeleton: Skeleton, recipe: Recipe, seed: int, device: torch.device | str = "cpu"
) -> HealingText:
    """Draw the windows that the recipe's ``heal`` asks for; a sampler that reads them runs the dense model on ``device``.

    Raises:
        UserError: no text, one too short, images, or a model that does not predict the next token.
    """
    heal = recipe.heal
    assert heal is not None
    data = heal.data or recipe.calibrate.data
    if names_images(data):
        raise _images(data)
    require_next_token_loss(skeleton.model, "heal needs the predictions of")
    length, note = _length(skeleton, heal)
    source = skeleton.source
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    sampler = build("sampler", heal.sampler)
    steps = max(1, -(-heal.tokens // (heal.batch * length)))
    samples = steps * heal.batch
    if isinstance(sampler, Selecting):
        samples = sampler.candidates(samples)
    _check_memory(heal.tokens, samples * length)
    train, judge = load_apart(
        data,
        tokenizer,
        samples=samples,
        held_out=heal.holdout,
        length=length,
        seed=seed,
        places=sampler.places,
        bos=recipe.calibrate.bos,
    )
    for corpus in (train, judge):
        check_token_ids(corpus.tokens, embedding_rows(skeleton.model), data)
    seen = train.tokens.numel() / max(1, train.tokens_available)
    windows = train.tokens
    if isinstance(sampler, Selecting):
        generator = torch.Generator().manual_seed(seed)
        model = partial(load, source.path, device=device, trust_remote_code=source.trust_remote_code)
        windows = sampler.select(windows.to(torch.int64), steps * heal.batch, model, generator).to(
            windows.dtype
        )
    passes = f"heal reads its text {seen:.1f} times over; a longer text would heal better" if seen > 4 else ""
    name = data if data == EMBEDDED else data.replace("\\", "/").rsplit("/", 1)[-1]
    return HealingText(
        windows, judge.tokens.to(torch.int64), name, tuple(part for part in (note, passes) if part)
    )


def _check_memory(tokens: int, drawn: int) -> None:
    """Refuse more tokens than memory holds.

    Args:
        tokens: as many as are asked for.
        drawn: in all windows that are drawn, of which a sampler chooses.

    Raises:
        UserError: there is no room for them.
    """
    size, free = drawn * TOKEN_BYTES, available_memory(torch.device("cpu"))
    if size > free:
        raise UserError(
            f"heal: the windows of {tokens:,} tokens take {in_bytes(size)} of memory, and {in_bytes(free)} are free: ask for "
            "fewer tokens, and heal the result once more"
        )
