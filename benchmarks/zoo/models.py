"""Writes a tiny random model with a tokenizer to a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from benchmarks.zoo.configs import VOCABULARY, tiny_config
from benchmarks.zoo.vision_language import PREFIX, build_vision_language

_TEXT = (
    "def add(first, second):\n    return first + second\n",
    "A model is compressed block by block, and every weight of it is accounted for.",
)

LARGEST = 2_000_000
"""Parameters of a tiny model, at most."""

PROCESSOR = {
    "preprocessor_config.json": '{"image_processor_type": "SomeImageProcessor"}',
    "processor_config.json": '{"processor_class": "SomeProcessor"}',
}
"""Files that a vision-language checkpoint has for its processor."""

FLOAT32 = frozenset({"inkling2_text", "reformer", "xlnet", "xlstm"})
"""Model types whose code in transformers does not run in bf16."""


def write_model(kind: str, folder: Path) -> None:
    """A model of type `kind` in bf16, the same at every call, and a byte-level tokenizer of 256 tokens; files of a processor
    beside those of a vision-language model."""
    build(kind).save_pretrained(folder)
    write_tokenizer(folder)
    if kind.startswith(PREFIX):
        for name, text in PROCESSOR.items():
            (folder / name).write_text(text)


def build(kind: str) -> PreTrainedModel:
    """A random model of type `kind` in bf16, in evaluation mode."""
    if kind.startswith(PREFIX):
        model = build_vision_language(kind.removeprefix(PREFIX)).to(torch.bfloat16)
    else:
        model = _causal(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            _randomize(parameter)
    return model.eval()


def auto_class(kind: str) -> str:
    """The class of transformers that opens checkpoints of a type."""
    return "AutoModelForImageTextToText" if kind.startswith(PREFIX) else "AutoModelForCausalLM"


def _causal(kind: str) -> PreTrainedModel:
    config = tiny_config(kind)
    with torch.device("meta"), no_init_weights():
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"the configuration of {kind} is not tiny: {size} parameters")
    torch.manual_seed(0)
    dtype = torch.float32 if kind in FLOAT32 else torch.bfloat16
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def _randomize(parameter: torch.Tensor) -> None:
    """Constants would hide mistakes: norms and biases start at 0 and 1, and some parameters are never set at all."""
    noise = 0.08 * torch.randn_like(parameter)
    if not bool(torch.isfinite(parameter).all()) or float(parameter.abs().max()) > 100:
        parameter.copy_(noise)
    elif parameter.ndim == 1 or float(parameter.std()) < 1e-6:
        parameter.add_(noise)


def write_tokenizer(folder: Path) -> None:
    """`<s>` 0, `</s>` 1, then 254 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 2]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
