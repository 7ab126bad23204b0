"""A server in a thread, asked over a socket as any client would."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from compress.serve import Engine, ServerSettings, open_engine
from compress.serve.engine import Answered, Asked
from compress.serve.server import bind, make_server


class Watched(Engine):
    """An engine that keeps what it was asked and how that ended."""

    asked: list[Asked]
    answered: list[Answered]

    def answer(self, asked: Asked, write: Callable[[str], None], stopped: Callable[[], bool]) -> Answered:
        self.asked.append(asked)
        self.answered.append(super().answer(asked, write, stopped))
        return self.answered[-1]


@dataclass
class Client:
    """Requests to a running server."""

    port: int
    engine: Watched
    taken: Callable[[], int]
    open: list[HTTPConnection] = field(default_factory=list)

    def send(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.open.append(connection)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method or ("GET" if body is None else "POST"), path, data, kind | headers)
        return connection

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        response = self.send(path, body, **headers).getresponse()
        return response.status, json.loads(response.read())

    def complete(self, prompt: Any = "The quick", **fields: Any) -> Any:
        status, answer = self.ask("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})
        assert status == 200, answer
        return answer

    def refused(self, path: str, body: Any, status: int, **headers: str) -> dict[str, Any]:
        """The error of a request that is refused."""
        found, answer = self.ask(path, body, **headers)
        assert found == status, answer
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        return dict(answer["error"])


def events(response: HTTPResponse) -> list[Any]:
    """The objects of a stream, which ends as it should."""
    *parts, end, nothing = response.read().decode().split("\n\n")
    assert (end, nothing) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never held")


@contextmanager
def serving(engine: Watched, settings: ServerSettings) -> Iterator[Client]:
    engine.asked, engine.answered = [], []
    with bind(settings.host, 0) as listening:
        server = make_server(engine, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        client = Client(listening.getsockname()[1], engine, lambda: int(server.requests.taken))
        thread.start()
        try:
            yield client
        finally:
            for connection in client.open:
                connection.close()
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def engine(tiny_model: Callable[..., Path]) -> Watched:
    """A tiny random model in fp32 with room for 4096 tokens."""
    folder = tiny_model("llama", max_position_embeddings=4096)
    engine = open_engine(folder, "tiny", device="cpu", dtype="fp32")
    engine.__class__ = Watched
    assert isinstance(engine, Watched)
    return engine


@pytest.fixture(scope="module")
def client(engine: Watched) -> Iterator[Client]:
    with serving(engine, ServerSettings(waiting=1, body_bytes=1 << 16, default_tokens=24)) as client:
        yield client
