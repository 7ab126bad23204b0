"""A text file as consecutive windows of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from compress.errors import UserError

CHARACTERS_PER_TOKEN = 8
"""First guess at how much text a limited number of windows needs; more is taken until they are full."""

MARGIN = 64
"""Tokens thrown away at the end of a prefix: the cut may change how its last words are split."""


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; of a `.jsonl` file, its "text" fields joined by blank lines.

    Raises UserError if the file is missing, empty, not UTF-8, or a line of a `.jsonl` file has no "text".
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): convert it first.") from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"The text {path} cannot be read ({reason}): give a UTF-8 text file.") from error
    if path.suffix == ".jsonl":
        text = "\n\n".join(
            _json_text(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()
        )
    if not text.strip():
        raise UserError(f"The text {path} is empty: give a text file with something to read.")
    return text


def _json_text(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}, line {number}: each line must be a JSON object with a "text" field.'
        ) from error
    if not isinstance(text, str):
        raise UserError(f'{path}, line {number}: "text" must be a string.')
    return text


def text_windows(
    text: str, tokenizer: PreTrainedTokenizerBase, *, length: int, limit: int | None = None, bos: bool = False
) -> Tensor:
    """The first `limit` consecutive windows of a text; all whole ones for None.

    Args:
        text: the text itself.
        length: tokens per window, at least 2.
        bos: begin every window with the tokenizer's BOS token (counted in `length`), as models that never saw
            a text without one need. Otherwise the text is cut as it comes, as perplexity is usually reported.

    Returns:
        int64 `[windows, length]`.

    Raises UserError if the text is shorter than one window, or if `bos` is asked of a tokenizer without one.
    """
    if length < 2:
        raise UserError(f"A window of {length} token predicts nothing: take a length of 2 or more.")
    if limit is not None and limit < 1:
        raise UserError(f"A limit of {limit} windows leaves nothing to measure: take 1 or more.")
    if bos and tokenizer.bos_token_id is None:
        raise UserError("This tokenizer has no BOS token: evaluate without one.")
    payload = length - 1 if bos else length
    tokens = _tokens(text, tokenizer, None if limit is None else limit * payload, special=not bos)
    windows = len(tokens) // payload
    if windows == 0:
        raise UserError(
            f"The text has {len(tokens)} tokens, fewer than one window of {length}: "
            "take a longer text or a shorter length."
        )
    cut = torch.tensor(tokens[: windows * payload], dtype=torch.int64).reshape(windows, payload)
    if bos:
        cut = torch.cat([torch.full((windows, 1), tokenizer.bos_token_id, dtype=torch.int64), cut], dim=1)
    return cut


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase, need: int | None, *, special: bool) -> list[int]:
    """At most `need` tokens from the start of the text, without tokenizing all of a long one."""
    size = len(text) if need is None else CHARACTERS_PER_TOKEN * (need + MARGIN)
    while True:
        prefix = text[:size]
        tokens = tokenizer(prefix, add_special_tokens=special, verbose=False)["input_ids"]
        if need is None or len(prefix) == len(text):
            return tokens[:need]
        if len(tokens) >= need + MARGIN:
            return tokens[:need]
        size *= 2


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint. Raises UserError if it has none that loads."""
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} has no tokenizer that loads ({first}): copy the model's tokenizer files there."
        ) from error


def check_same_tokenizer(
    reference: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str, probe: str
) -> None:
    """Raise UserError unless both tokenizers have one vocabulary and split `probe` alike."""
    if reference.get_vocab() != other.get_vocab():
        what = f"{len(other)} tokens against {len(reference)}"
    elif reference(probe, verbose=False)["input_ids"] != other(probe, verbose=False)["input_ids"]:
        what = "it splits the text otherwise"
    else:
        return
    raise UserError(
        f"{name} has another tokenizer than the reference ({what}), so their predictions cannot be compared: "
        "evaluate it against its own dense model."
    )
