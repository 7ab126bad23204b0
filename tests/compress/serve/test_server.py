"""The server's beginning and end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from http.client import HTTPConnection

import pytest

from compress.errors import UserError
from compress.serve import ServerSettings, serve
from compress.serve.server import bind, is_local

from .conftest import Watched, eventually


def test_ctrl_c_ends_an_answer_and_the_server(engine: Watched) -> None:
    engine.asked, engine.answered = [], []
    read: list[bytes] = []
    threads: list[threading.Thread] = []

    def ask(port: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"prompt": "a", "max_tokens": 4000, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        read.append(response.read(10))
        os.kill(os.getpid(), signal.SIGINT)
        read.append(response.read())
        connection.close()

    def ready(url: str) -> None:
        threads.append(threading.Thread(target=ask, args=(int(url.rpartition(":")[2]),)))
        threads[0].start()

    with pytest.raises(KeyboardInterrupt):
        serve(lambda: engine, ServerSettings(port=0), ready)
    threads[0].join(60)
    assert b"being stopped" in read[1]
    eventually(lambda: engine.answered)
    assert engine.answered[0].new_tokens < 4000


def test_a_taken_port_is_said_before_the_model_is_loaded() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1, port {port} .*: name another"):
            serve(lambda: pytest.fail("loaded"), ServerSettings(port=port))
    with pytest.raises(UserError, match="cannot listen at no.such.host.invalid"):
        bind("no.such.host.invalid", 0)


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r'pip install "compress-llm\[serve\]"'):
        serve(lambda: pytest.fail("loaded"))


def test_local_addresses() -> None:
    assert all(map(is_local, ["127.0.0.1", "::1", "localhost", "127.5.5.5"]))
    assert not any(map(is_local, ["0.0.0.0", "::", "192.168.1.5", "example.org"]))
