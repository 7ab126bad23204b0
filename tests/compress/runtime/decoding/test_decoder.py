"""Generation by a traced step: the tokens that transformers gives, for every family, or a reason why it is not traced."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.runtime.decoding import Decoder, norms
from compress.runtime.decoding import decoder as module
from compress.runtime.decoding.cache import BufferedCache

Tiny = Callable[..., Path]
NEW = 40
TRACED = ["llama", "llama_tied", "qwen3", "mistral", "gemma3", "phi3", "gpt2", "opt", "gpt_neox"]


def _open(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for parameter in model.parameters():  # tokens that differ from each other need weights of some size
        parameter.data.normal_(std=0.2) if parameter.dim() > 1 else parameter.data.normal_(1, 0.1)
    return model


def _logits(model: PreTrainedModel, decoder: Decoder | None, length: int = 24) -> torch.Tensor:
    """Logits ``[NEW, vocabulary]`` of a sampled continuation, the same samples for the same logits."""
    prompt = torch.arange(3, 3 + length)[None]
    settings: dict[str, Any] = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": True,
        "top_k": 0,
        "pad_token_id": 0,
    }
    settings |= {
        "attention_mask": torch.ones_like(prompt),
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    torch.manual_seed(1)
    with torch.inference_mode(), decoder.generating(1, length, NEW) if decoder else nullcontext({}) as extra:
        output: Any = model.generate(prompt, **settings, **extra)  # type: ignore[operator]
    return torch.cat(output.logits)


@pytest.mark.parametrize("family", TRACED)
def test_the_logits_of_transformers(family: str, tiny_model: Tiny) -> None:
    model = _open(tiny_model(family))
    decoder = Decoder(model)
    torch.testing.assert_close(_logits(model, decoder), _logits(model, None), rtol=1e-3, atol=1e-3)
    assert decoder.note is None
    assert decoder._step is not None
    # Another prompt by the same trace.
    torch.testing.assert_close(_logits(model, decoder, 9), _logits(model, None, 9), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_what_a_trace_does_not_hold_decodes_as_before(family: str, tiny_model: Tiny) -> None:
    model = _open(tiny_model(family))
    decoder = Decoder(model)
    torch.testing.assert_close(_logits(model, decoder), _logits(model, None), rtol=1e-3, atol=1e-3)
    assert decoder.note is not None


def test_a_step_that_computes_something_else_is_given_up(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _open(tiny_model("llama"))
    wrong = torch.ops.compress_kernels.native_rms_norm
    monkeypatch.setattr(
        norms.RmsNorm, "__call__", lambda norm, x: wrong(x, norm.weight, norm.eps, norm.offset, True) * 1.1
    )
    monkeypatch.setattr(norms, "_alike", lambda result, wanted: True)
    decoder = Decoder(model)
    torch.testing.assert_close(_logits(model, decoder), _logits(model, None), rtol=1e-3, atol=1e-3)
    assert "diverge" in str(decoder.note)


@pytest.mark.parametrize(("batch", "beams", "new"), [(2, 1, NEW), (1, 2, NEW), (1, 1, module.WORTH - 1)])
def test_what_is_not_worth_tracing(batch: int, beams: int, new: int, tiny_model: Tiny) -> None:
    decoder = Decoder(_open(tiny_model("llama")))
    with decoder.generating(batch, 8, new, beams) as extra:
        assert extra == {}


def test_half_precision_is_left_to_transformers(tiny_model: Tiny) -> None:
    assert "float16" in str(Decoder(_open(tiny_model("llama"), torch.float16)).note)


def test_padding_is_left_to_the_model(tiny_model: Tiny) -> None:
    mask = torch.tensor([[0, 1, 1]])
    cache = BufferedCache(1, 8)
    call = {"input_ids": torch.tensor([[5]]), "past_key_values": cache, "use_cache": True}
    assert module._single_token(call) is None  # no prompt yet
    cache.advance()
    assert module._single_token(call) is not None
    assert module._single_token({**call, "attention_mask": mask}) is None
    assert module._single_token({**call, "inputs_embeds": torch.zeros(1, 1, 4)}) is None
    assert module._single_token({**call, "input_ids": torch.tensor([[5, 6]])}) is None
