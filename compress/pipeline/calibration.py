"""Calibration windows that the model can take: no longer than its positions, no token beyond its embedding."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from compress.assets import EMBEDDED
from compress.calibrate.corpus import Corpus, load_corpus
from compress.calibrate.image_corpus import load_image_corpus, load_processor, names_images
from compress.calibrate.text_length import check_text_length, overlap_note, payload_of
from compress.errors import UserError
from compress.healing.samplers.base import Selecting
from compress.models.architecture import predicts_next_token
from compress.models.skeleton import Skeleton
from compress.models.towers import beside_decoder
from compress.planning.methods import build
from compress.recipe.recipe import Recipe
from compress.runtime.load import load
from compress.text.frame import framed, special_tokens_around
from compress.text.limits import check_token_ids, embedding_rows, fit_length, reserved_positions
from compress.text.tokenize import load_tokenizer


def fit_recipe(recipe: Recipe, skeleton: Skeleton) -> tuple[Recipe, str]:
    """Shorten a recipe's calibration windows to the model's positions.

    Returns:
        The recipe, and a sentence for people where the length is another one than was asked for; else an empty sentence.

    Raises:
        UserError: a sampler that does not choose windows, or for a model that does not predict the next token.
    """
    _sampler(recipe, skeleton)
    reserved = reserved_positions(skeleton.model)
    length, note = fit_length(skeleton.model.config, recipe.calibrate.length, reserved)
    return (recipe.with_settings({"calibrate.length": length}), note) if note else (recipe, "")


def check_weights_stay(skeleton: Skeleton) -> None:
    """Refuse to gather statistics in a model whose code changes its weights while it runs.

    Raises:
        UserError: it does.
    """
    if changed := min(skeleton.flow.changed, default=None):
        raise UserError(
            f"the code of {type(skeleton.model).__name__} changes {changed} in place while it runs, so that the inputs of its "
            "weights cannot be gathered: choose a recipe without data, such as w4-rtn"
        )


def check_text_alone(recipe: Recipe) -> None:
    """Refuse images as calibration data of a pass before the blocks are compressed, which reads text alone.

    Raises:
        UserError: the recipe's data names images.
    """
    if names_images(recipe.calibrate.data):
        raise UserError(
            f"{recipe.calibrate.data} names images, and gradients, pruned blocks or widths, and ranks or sparsities by layer "
            "are found on text alone: give this recipe a --data of text without images."
        )


def check_calibration_text(skeleton: Skeleton, recipe: Recipe, *, count: bool = False) -> str:
    """Refuse a calibration text that is shorter than one window, before any expensive work.

    Args:
        skeleton: the model; its source has the tokenizer.
        recipe: with windows that the model takes (:func:`fit_recipe`).
        count: look at as much of the text as all windows take.

    Returns:
        With ``count`` a sentence where the windows overlap; else an empty one.

    Raises:
        UserError: the text is shorter, or the text or the tokenizer is missing or damaged.
    """
    wanted = recipe.calibrate
    if names_images(wanted.data):
        return ""
    source = skeleton.source
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    length, bos = wanted.length, wanted.bos
    if not predicts_next_token(skeleton.model):
        length, bos = length - sum(map(len, special_tokens_around(tokenizer))), False
    windows = wanted.samples if count else 1
    found = check_text_length(wanted.data, tokenizer, length=length, windows=windows, bos=bos)
    if not count or found is None:
        return ""
    return overlap_note(wanted.data, found, windows, payload_of(tokenizer, length, bos))


def draw_corpus(skeleton: Skeleton, recipe: Recipe, seed: int, note: str = "") -> Corpus:
    """Draw the calibration windows of a recipe, of a length that the model takes.

    Args:
        skeleton: the model; its source has the tokenizer.
        recipe: says which text, how many windows and whether they begin with BOS.
        seed: decides the windows.
        note: a sentence that is put before the corpus' own.

    Raises:
        UserError: the text or the tokenizer is missing or damaged, or a token is beyond the model's embedding.
    """
    source, wanted = skeleton.source, recipe.calibrate
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    windows: dict[str, Any] = {"samples": wanted.samples, "length": wanted.length, "bos": wanted.bos}
    if names_images(wanted.data):
        corpus = _with_images(skeleton, recipe, tokenizer, seed)
    elif predicts_next_token(skeleton.model):
        sampler = _sampler(recipe, skeleton)
        if sampler is not None:
            windows["samples"] = sampler.candidates(wanted.samples)
        corpus = load_corpus(wanted.data, tokenizer, seed=seed, **windows)
        if sampler is not None:
            corpus = _chosen(corpus, sampler, skeleton, wanted.samples, seed)
    else:
        before, behind = special_tokens_around(tokenizer)
        windows |= {"length": wanted.length - len(before) - len(behind), "bos": False}
        corpus = load_corpus(wanted.data, tokenizer, seed=seed, **windows)
        corpus = replace(corpus, tokens=framed(corpus.tokens, before, behind))
    check_token_ids(corpus.tokens, embedding_rows(skeleton.model), corpus.source)
    return replace(corpus, note=" ".join(part for part in (note, corpus.note) if part))


def _sampler(recipe: Recipe, skeleton: Skeleton) -> Selecting | None:
    """What chooses the calibration windows."""
    if recipe.calibrate.sampler is None:
        return None
    name, sampler = recipe.calibrate.sampler.name, build("sampler", recipe.calibrate.sampler)
    if not isinstance(sampler, Selecting):
        raise UserError(
            f"calibrate: sampler '{name}' says in which order training reads, and chooses no windows: leave it out, or take "
            "kmeans, sensitivity, el2n or self"
        )
    if names_images(recipe.calibrate.data) or not predicts_next_token(skeleton.model):
        raise UserError(
            f"calibrate: sampler '{name}' reads windows of text with a model that predicts the next token: leave it out"
        )
    return sampler


def _chosen(corpus: Corpus, sampler: Selecting, skeleton: Skeleton, count: int, seed: int) -> Corpus:
    """``count`` of the corpus' windows."""
    source = skeleton.source
    model = partial(load, source.path, device="cpu", trust_remote_code=source.trust_remote_code)
    generator = torch.Generator().manual_seed(seed)
    tokens = sampler.select(corpus.tokens.to(torch.int64), count, model, generator)
    return replace(corpus, tokens=tokens.to(corpus.tokens.dtype).contiguous())


def _with_images(skeleton: Skeleton, recipe: Recipe, tokenizer: Any, seed: int) -> Corpus:
    """Windows of conversations with images, each followed by the text that ships with the package."""
    source, wanted = skeleton.source, recipe.calibrate
    if not beside_decoder(skeleton.model):
        raise UserError(f"{wanted.data} names images, which a {type(skeleton.model).__name__} does not take.")
    windows: dict[str, Any] = {"samples": wanted.samples, "length": wanted.length, "seed": seed}
    filler = load_corpus(EMBEDDED, tokenizer, bos=False, **windows).tokens
    processor = load_processor(source.path, trust_remote_code=source.trust_remote_code)
    return load_image_corpus(wanted.data, processor, filler, **windows)
