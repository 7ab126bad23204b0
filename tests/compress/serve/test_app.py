"""The endpoint over a socket: answers are those of transformers, streamed or not, and mistakes end in OpenAI's errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.assets import embedded_model
from compress.runtime.generate import generate
from compress.serve import ServerSettings, open_engine

from .conftest import Client, Watched, events, eventually, serving

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def test_greedy_text_is_that_of_transformers(client: Client, tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("llama", max_position_embeddings=4096)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer("The quick", return_tensors="pt")
    found = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    answer = client.complete(max_tokens=20)
    (choice,) = answer["choices"]
    assert choice["text"] == tokenizer.decode(found, skip_special_tokens=True)
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29}
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    assert client.complete(prompt["input_ids"][0].tolist(), max_tokens=20)["choices"] == answer["choices"]
    assert client.complete(["The quick"], max_tokens=20)["choices"] == answer["choices"]


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_says_what_the_whole_answer_says(client: Client, chat: bool) -> None:
    path, asked = (CHAT, {"messages": HELLO}) if chat else (COMPLETIONS, {"prompt": "hello"})
    body = {**asked, "max_tokens": 30, "temperature": 1.5, "top_p": 0.9, "seed": 4}
    status, whole = client.ask(path, body)
    assert status == 200
    response = client.send(
        path, {**body, "stream": True, "stream_options": {"include_usage": True}}
    ).getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, last, counts = events(response)
    text = "".join(
        part["choices"][0]["delta"]["content"] if chat else part["choices"][0]["text"] for part in parts
    )
    (choice,) = whole["choices"]
    assert text == (choice["message"]["content"] if chat else choice["text"])
    assert len(parts) > 5
    assert last["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert counts["usage"] == whole["usage"]
    assert counts["choices"] == []
    if chat:
        assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert (whole["object"], parts[0]["object"]) == ("chat.completion", "chat.completion.chunk")


def test_a_seed_decides_and_so_do_temperature_and_top_p(client: Client) -> None:
    def text(**fields: Any) -> str:
        return str(client.complete(**{"max_tokens": 24, "temperature": 2, **fields})["choices"][0]["text"])

    assert text(seed=1) == text(seed=1) != text(seed=2)
    greedy = text(temperature=0)
    assert text(temperature=2, top_p=1e-6, seed=5) == greedy
    assert text(temperature=None, top_p=1e-6, seed=5) == greedy
    assert client.engine.asked[-1].temperature is None


def test_a_stop_ends_the_answer_before_it(client: Client) -> None:
    whole = client.complete(max_tokens=40)["choices"][0]["text"]
    stop = whole[12:15]
    cut = whole[: whole.index(stop)]
    answer = client.complete(max_tokens=40, stop=["never comes", stop])
    assert answer["choices"][0]["text"] == cut
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 40
    body = {"prompt": "The quick", "temperature": 0, "max_tokens": 40, "stop": stop, "stream": True}
    *parts, last = events(client.send(COMPLETIONS, body).getresponse())
    assert "".join(part["choices"][0]["text"] for part in parts) == cut
    assert last["choices"][0]["finish_reason"] == "stop"


def test_an_end_token_ends_the_answer(
    client: Client, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine._decoder.model
    prompt = torch.tensor([engine.text_tokens("The quick")])
    third = int(model.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=1)[0, -1])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [third])
    monkeypatch.setattr(engine, "_ends", frozenset([third]))
    answer = client.complete(max_tokens=30)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] <= 3


def test_models_and_names(client: Client) -> None:
    status, found = client.ask("/v1/models")
    (model,) = found["data"]
    assert status == 200
    assert (model["id"], model["max_model_len"], model["chat"]) == ("tiny", 4096, True)
    assert client.ask("/v1/models/tiny")[1] == model
    assert client.ask("/health")[0] == 200
    assert client.complete(model="tiny")["usage"]["completion_tokens"] <= 24  # the server's default
    error = client.refused(COMPLETIONS, {"prompt": "a", "model": "gpt"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'tiny'" in error["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": []}, "One prompt at a time"),
        ({"prompt": ["a", "b"]}, "One prompt at a time"),
        ({"prompt": [256]}, "vocabulary of 256"),
        ({"prompt": {}}, "prompt: "),
        ({"prompt": "\ud800"}, "prompt: half of a surrogate"),
        ({}, "prompt: Field required"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: "),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens: "),
        ({"prompt": "a", "max_tokens": 5000}, "5000 new ones are more than the 4096"),
        ({"prompt": "a" * 4096}, "more than the 4096"),
        ({"prompt": "a", "temperature": 3}, "temperature: "),
        ({"prompt": "a", "temperature": float("nan")}, "temperature: "),
        ({"prompt": "a", "top_p": 0}, "top_p: "),
        ({"prompt": "a", "stop": ""}, "stop: "),
        ({"prompt": "a", "n": 2}, "'n' is not offered"),
        ({"prompt": "a", "echo": True}, "'echo' is not offered"),
        ({"prompt": "a", "temprature": 1}, "temprature: there is no such field"),
        (b"{", "The body is not JSON"),
        (b"[" * 60000, "."),
        ([], "."),
    ],
)
def test_a_mistake_is_one_sentence(client: Client, body: Any, said: str) -> None:
    error = client.refused(COMPLETIONS, body, 400)
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")


def test_what_asks_for_nothing_is_let_pass(client: Client) -> None:
    neutral = {
        "n": 1,
        "logprobs": None,
        "presence_penalty": 0.0,
        "user": "me",
        "logit_bias": {},
        "stop": None,
    }
    assert client.complete(max_tokens=2, **neutral)["usage"]["completion_tokens"] <= 2


def test_messages(client: Client) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    counts = [client.ask(CHAT, {"messages": asked, "max_tokens": 1})[1]["usage"] for asked in (HELLO, parts)]
    assert counts[0] == counts[1]
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    for messages, said in ((picture, "messages.0.content"), ([], "messages: "), ([{"role": "tool"}], "role")):
        assert said in client.refused(CHAT, {"messages": messages}, 400)["message"]
    assert (
        client.ask(CHAT, {"messages": HELLO, "max_completion_tokens": 1})[1]["usage"]["completion_tokens"]
        == 1
    )


def test_no_chat_template(engine: Watched, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._tokenizer, "chat_template", None)
    assert (
        "no chat template: ask /v1/completions" in client.refused(CHAT, {"messages": HELLO}, 400)["message"]
    )
    assert client.ask("/v1/models")[1]["data"][0]["chat"] is False


def test_more_requests_than_may_wait(client: Client) -> None:
    first = client.send(COMPLETIONS, {"prompt": "a", "max_tokens": 4000, "stream": True})
    first.getresponse().read(10)
    second = client.send(COMPLETIONS, {"prompt": "b", "max_tokens": 1})
    eventually(lambda: client.taken() == 2)
    response = client.send(COMPLETIONS, {"prompt": "c", "max_tokens": 1}).getresponse()
    assert (response.status, response.headers["retry-after"]) == (429, "1")
    first.close()
    assert second.getresponse().status == 200
    assert client.complete(max_tokens=1)
    eventually(lambda: client.taken() == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(client: Client, stream: bool) -> None:
    done = len(client.engine.answered)
    connection = client.send(COMPLETIONS, {"prompt": "a", "max_tokens": 4000, "stream": stream})
    eventually(lambda: len(client.engine.asked) > done)
    connection.close()
    eventually(lambda: len(client.engine.answered) > done)
    assert client.engine.answered[-1].new_tokens < 4000


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_the_queue_gives_its_place_back(client: Client, stream: bool) -> None:
    first = client.send(COMPLETIONS, {"prompt": "a", "max_tokens": 4000, "stream": True})
    first.getresponse().read(10)
    begun = len(client.engine.asked)
    waiting = client.send(COMPLETIONS, {"prompt": "b", "max_tokens": 1, "stream": stream})
    eventually(lambda: client.taken() == 2)
    waiting.close()
    eventually(lambda: client.taken() == 1)
    first.close()
    eventually(lambda: client.taken() == 0)
    assert len(client.engine.asked) == begun


def test_a_fault_of_ours_is_told(engine: Watched, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(engine, "answer", broken)
    assert client.refused(COMPLETIONS, {"prompt": "a"}, 500)["type"] == "server_error"
    response = client.send(COMPLETIONS, {"prompt": "a", "stream": True}).getresponse()
    assert b"ZeroDivisionError" in response.read()
    monkeypatch.undo()
    assert client.complete(max_tokens=1)


def test_the_embedded_model() -> None:
    engine = open_engine(embedded_model(), "embedded", device="cpu")
    engine.__class__ = Watched
    assert isinstance(engine, Watched)
    with serving(engine, ServerSettings()) as client:
        texts = {client.complete("def parse(", max_tokens=24)["choices"][0]["text"] for _ in range(3)}
    alone = generate("embedded", "def parse(", max_new_tokens=24, temperature=0, device="cpu")
    assert texts == {alone.text}
