"""The files that are mutated: a tiny checkpoint, a finished and an unfinished output of it, a recipe, a text."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import compress as api
from compress.system.progress import Silent

RECIPE = """\
name: fuzzed
calibrate: {data: embedded, samples: 2, length: 16}
steps:
  - targets: [linear]
    quantize: {bits: 4, group_size: 32}
    solver: [{name: gptq, damping: 0.01}]
    score: activation
"""
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class World:
    """A folder with ``model``, ``out``, ``half.partial`` (an unfinished output), ``recipe.yaml`` and ``text.jsonl``."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def half(self) -> Path:
        return self.root / "half"

    @property
    def partial(self) -> Path:
        return self.root / "half.partial"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def text(self) -> Path:
        return self.root / "text.jsonl"

    def copy_to(self, root: Path) -> World:
        """A copy of everything in another folder."""
        shutil.copytree(self.root, root, symlinks=True)
        return World(root)


class _Dying(Silent):
    """Ends the process as a kill does when the second block begins."""

    def block(self, index: int) -> None:
        if index == 1:
            os._exit(0)


def build_world(root: Path) -> World:
    """Make the files; ``root`` must not exist."""
    world = World(root)
    root.mkdir(parents=True)
    _write_model(world.model)
    lines = [{"text": f"Words of line {number}, and some more of them."} for number in range(40)]
    world.text.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    world.recipe.write_text(RECIPE, encoding="utf-8")
    options = {"data": str(world.text), "device": "cpu"}
    api.compress(world.model, world.recipe, world.out, **options)
    child = os.fork()
    if child == 0:
        try:
            api.compress(world.model, world.recipe, world.half, progress=_Dying(), **options)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert world.partial.is_dir()
    return world


def _write_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    fast.save_pretrained(folder)
