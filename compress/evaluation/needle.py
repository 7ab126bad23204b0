"""A needle in a long text: whether a number that was said far back is found again."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from compress_kernels.forward import quick_forward
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.errors import UserError
from compress.evaluation.figures import NeedleFigures
from compress.text.tokenize import encode

LONGEST = 4096
DEPTHS = (0.1, 0.5, 0.9)
NUMBERS = (7381, 4629, 9154)
SAID = "\nThe secret number is {}.\n"
ASKED = "\nThe secret number is"


@dataclass(frozen=True)
class Needle:
    """Long texts that end in a question, and its answers.

    Attributes:
        tokens: int64 ``[depths, context]``, answers included.
        answers: how many tokens at each end are the answer.
    """

    tokens: tuple[Tensor, ...]
    answers: tuple[int, ...]
    context: int


def make_needle(
    tokenizer: PreTrainedTokenizerBase, hay: Sequence[int], longest: int, *, bos: bool = False
) -> Needle:
    """A sentence with a number at three depths of a text as long as the model takes, up to 4096 tokens.

    Args:
        hay: token ids of the text that it is hidden in; read from the start again where it is too short.
        longest: tokens that the model takes.
        bos: begin with the BOS token.

    Raises:
        UserError: the model takes too few tokens to hide anything in.
    """
    context = min(longest, LONGEST)
    start = [tokenizer.bos_token_id] if bos else []
    tokens, answers = [], []
    for depth, number in zip(DEPTHS, NUMBERS, strict=True):
        needle = encode(tokenizer, SAID.format(number), special_tokens=False)
        asked = encode(tokenizer, ASKED, special_tokens=False)
        # Encoded with what stands before it, as some tokenizers put a space into the number's first token.
        answer = encode(tokenizer, f"{ASKED} {number}", special_tokens=False)[len(asked) :]
        room = context - len(start) - len(needle) - len(asked) - len(answer)
        if room < 16 or not hay:
            raise UserError(f"A context of {context} tokens has no room for a needle: leave --needle out.")
        text = [hay[index % len(hay)] for index in range(room)]
        at = round(depth * room)
        whole = [*start, *text[:at], *needle, *text[at:], *asked, *answer]
        tokens.append(torch.tensor(whole, dtype=torch.int64))
        answers.append(len(answer))
    return Needle(tuple(tokens), tuple(answers), context)


@torch.inference_mode()
def find_needle(model: PreTrainedModel, needle: Needle) -> NeedleFigures:
    """How often every token of the answer is the likeliest, and the answers' mean negative log-likelihood by token."""
    found, nll, count = 0, 0.0, 0
    few = "logits_to_keep" in inspect.signature(model.forward).parameters
    for tokens, answer in zip(needle.tokens, needle.answers, strict=True):
        more = {"logits_to_keep": answer + 1} if few else {}
        with quick_forward():
            logits = model(input_ids=tokens[None].to(model.device), use_cache=False, **more).logits
        logits = logits[0, -answer - 1 : -1]
        truth = tokens[-answer:].to(logits.device)
        scores = logits.float().log_softmax(-1)
        found += int(bool((scores.argmax(-1) == truth).all()))
        nll -= float(scores.gather(-1, truth[:, None]).double().sum())
        count += answer
    return NeedleFigures(needle.context, found, len(needle.tokens), nll / count)
