"""Who may ask: a body of JSON and not too large, by a name of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from compress.serve.guard import Guard

from .conftest import Client

COMPLETIONS = "/v1/completions"


def test_a_foreign_name_is_refused(client: Client) -> None:
    assert (
        "not called 'evil.example'"
        in client.refused("/v1/models", None, 403, Host="evil.example:80")["message"]
    )
    for host in ("localhost", f"127.0.0.1:{client.port}", "[::1]:80"):
        assert client.ask("/v1/models", None, Host=host)[0] == 200


def test_a_body_that_a_browser_sends_unasked_is_refused(client: Client) -> None:
    body = {"prompt": "a"}
    assert (
        "Content-Type" in client.refused(COMPLETIONS, body, 415, **{"Content-Type": "text/plain"})["message"]
    )
    assert client.send(COMPLETIONS, None, "OPTIONS").getresponse().status == 405


def test_a_large_body_is_refused(client: Client) -> None:
    assert "65536 bytes" in client.refused(COMPLETIONS, {"prompt": "a" * (1 << 16)}, 413)["message"]


def test_the_page_brings_all_it_needs(client: Client) -> None:
    response = client.send("/").getresponse()
    page = response.read().decode()
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in page
    assert "https://" not in page
    for name in ("page.css", "page.js"):
        assert name in page
        assert client.send(f"/{name}").getresponse().status == 200


def test_a_body_of_unknown_length_is_counted() -> None:
    sent: list[Any] = []
    pieces: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": b"x" * 40, "more_body": True}] * 9
    )

    async def receive() -> Any:
        return next(pieces)

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*arguments: object) -> None:
        raise AssertionError("let through")

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(Guard(app, None, 100)(scope, receive, send))
    assert sent[0]["status"] == 413
    assert len(list(pieces)) == 6


@pytest.mark.parametrize("length", [b"-1", b"1e9", b"101"])
def test_a_length_that_is_none(length: bytes) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*arguments: object) -> Any:
        raise AssertionError("let through")

    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    asyncio.run(Guard(never, None, 100)({"type": "http", "method": "POST", "headers": headers}, never, send))
    assert sent[0]["status"] == 413
