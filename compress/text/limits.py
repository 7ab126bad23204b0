"""What a model takes of a text: as many tokens in a row as it has positions, and ids that its embedding has rows for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.errors import UserError


def fit_length(config: Any, length: int, reserved: int = 0) -> tuple[int, str]:
    """Shorten a window to the model's positions.

    Args:
        config: the model's configuration, a ``PretrainedConfig``.
        length: tokens that were asked for.
        reserved: positions that no token of a text has.

    Returns:
        The length to take, and a sentence that says so where it is another one; else an empty sentence.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if type(longest) is not int or not 0 < longest - reserved < length:
        return length, ""
    longest -= reserved
    return longest, f"Windows have {longest} tokens, the longest that the model takes, instead of {length}."


def reserved_positions(model: nn.Module) -> int:
    """Rows at the start of a table of positions that stand for padding: 2 where positions count from the padding's index on."""
    tables = (
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None
    )
    return next((module.padding_idx + 1 for module in tables if module.padding_idx is not None), 0)


def check_token_ids(tokens: Tensor, rows: int, source: str) -> None:
    """Raise unless the embedding has a row for every token.

    Args:
        tokens: int64, of any shape.
        rows: of the embedding.
        source: what the text is called in the error sentence.

    Raises:
        UserError: an id is beyond the embedding.
    """
    largest = int(tokens.max()) if tokens.numel() else -1
    if largest >= rows:
        raise UserError(
            f"The text {source} has the token id {largest}, but the model's embedding has only {rows} rows: "
            "its tokenizer is another model's; copy the right tokenizer files beside the weights."
        )


def embedding_rows(model: Any) -> int:
    """Rows of a model's input embedding; the vocabulary of its configuration where it has no module for that."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError, TypeError):
        return int(model.config.get_text_config().vocab_size)
