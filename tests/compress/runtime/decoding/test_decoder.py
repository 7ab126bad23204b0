"""Generation by a recorded step: the tokens that transformers gives, for every family, or a reason why it is not recorded."""

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
from compress.runtime.generate import Clock, run

Tiny = Callable[..., Path]
NEW = 40
RECORDED = ["llama", "llama_tied", "qwen3", "mistral", "gemma3", "phi3", "gpt2", "opt", "gpt_neox"]


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
    kept: list[torch.Tensor] = []

    def keep(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept.append(scores.clone())
        return scores

    torch.manual_seed(1)
    with torch.inference_mode(), decoder.generating(1, length, NEW) if decoder else nullcontext({}) as extra:
        mask = torch.ones_like(prompt)
        model.generate(prompt, attention_mask=mask, logits_processor=[keep], **settings, **extra)  # type: ignore[operator]
    return torch.cat(kept)


@pytest.mark.parametrize("family", RECORDED)
def test_the_logits_of_transformers(family: str, tiny_model: Tiny) -> None:
    model = _open(tiny_model(family))
    decoder = Decoder(model)
    torch.testing.assert_close(_logits(model, decoder), _logits(model, None), rtol=1e-3, atol=1e-3)
    assert decoder.note is None
    assert decoder.program is not None
    # Another prompt by the same record.
    torch.testing.assert_close(_logits(model, decoder, 9), _logits(model, None, 9), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_what_a_record_does_not_hold_decodes_as_before(family: str, tiny_model: Tiny) -> None:
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


def test_a_step_is_not_held_to_less_than_the_models_own_rounding(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that makes much of the last bits of its numbers (two bits do) is recorded all the same."""
    model = _open(tiny_model("llama"), torch.bfloat16)
    monkeypatch.setitem(module._TOLERANCE, torch.bfloat16, 1e-12)
    decoder = Decoder(model)
    before = model.get_input_embeddings()(torch.tensor([[5]]))
    _logits(model, decoder)
    assert decoder.note is None
    assert decoder.program is not None
    assert torch.equal(model.get_input_embeddings()(torch.tensor([[5]])), before)


@pytest.mark.parametrize(("batch", "beams", "new"), [(2, 1, NEW), (1, 2, NEW), (1, 1, module.WORTH - 1)])
def test_what_is_not_worth_recording(batch: int, beams: int, new: int, tiny_model: Tiny) -> None:
    decoder = Decoder(_open(tiny_model("llama")))
    with decoder.generating(batch, 8, new, beams) as extra:
        assert extra == {}


def test_half_precision_is_left_to_transformers(tiny_model: Tiny) -> None:
    assert "float16" in str(Decoder(_open(tiny_model("llama"), torch.float16)).note)


def test_padding_is_refused(tiny_model: Tiny) -> None:
    model = _open(tiny_model("llama"))
    mask = torch.tensor([[0, 1, 1]])
    with Decoder(model).generating(1, 3, NEW) as extra, pytest.raises(ValueError, match="padding"):
        model.generate(mask + 4, attention_mask=mask, max_new_tokens=NEW, pad_token_id=0, **extra)  # type: ignore[operator]


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}])
def test_the_tokens_of_transformers(settings: dict[str, Any], tiny_model: Tiny) -> None:
    model = _open(tiny_model("llama"))
    prompt, decoder, found = torch.arange(3, 20)[None], Decoder(model), []
    settings = {
        "max_new_tokens": NEW,
        "repetition_penalty": 1.1,
        "eos_token_id": 40,
        "pad_token_id": 0,
        **settings,
    }
    for context in (decoder.generating(1, 17, NEW), nullcontext({}), decoder.generating(1, 17, NEW)):
        torch.manual_seed(2)
        with torch.inference_mode(), context as extra:
            mask = torch.ones_like(prompt)
            found.append(model.generate(prompt, attention_mask=mask, **settings, **extra))  # type: ignore[operator]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[1])  # by the same record


def test_a_longer_prompt_takes_a_larger_cache(tiny_model: Tiny) -> None:
    model = _open(tiny_model("llama"))
    decoder = Decoder(model)
    _logits(model, decoder)
    first = decoder.program
    with decoder.generating(1, 300, NEW) as extra:
        assert extra["past_key_values"].capacity >= 300 + NEW
    assert first is not None
    assert decoder.program is None


def test_every_token_is_streamed(tiny_model: Tiny) -> None:
    decoder, clock = Decoder(_open(tiny_model("llama"))), Clock()
    run(
        decoder,
        torch.arange(3, 20)[None],
        clock,
        {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0},
    )
    assert clock.new_tokens == NEW
    assert decoder.program is not None


@pytest.mark.parametrize("new", [1, NEW])
def test_what_a_prompt_took_is_given_back_after_it(
    new: int, tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned: list[int] = []
    monkeypatch.setattr(module, "return_free_memory", lambda: returned.append(1))
    run(Decoder(_open(tiny_model("llama"))), torch.arange(3, 27)[None], Clock(), {"max_new_tokens": new})
    assert returned == [1]


def test_what_roundings_are_worth_is_tried_at_every_norm(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _open(tiny_model("llama"), torch.bfloat16)
    monkeypatch.setitem(module._TOLERANCE, torch.bfloat16, 1e-12)  # so that it is asked
    moved: list[torch.nn.Module] = []
    register = torch.nn.Module.register_forward_hook

    def noted(self: torch.nn.Module, hook: Any, **kwargs: Any) -> Any:
        moved.append(self)
        return register(self, hook, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", noted)
    _logits(model, Decoder(model))
    assert {model.get_input_embeddings(), *norms.rms_norms(model)} == set(moved)
    assert not any(part._forward_hooks for part in model.modules())
