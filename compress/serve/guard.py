"""The guard before the routes: whose name the server is called by, what a body may be, and how large."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from .answers import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """ASGI middleware.

    Web pages of others cannot ask the model through a person's browser: a body has to be JSON by its content type, for which
    browsers ask leave first, and nobody gets it; a name that somebody points at this machine (DNS rebinding) is refused.

    Args:
        app: what is guarded.
        hosts: names and addresses that ``Host`` may have; None allows any.
        most: bytes of a body.
    """

    def __init__(self, app: App, hosts: frozenset[str] | None, most: int) -> None:
        self._app, self._hosts, self._most = app, hosts, most

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on that may be answered, and refuse all others."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        try:
            self._check(scope)
            body = await self._body(receive) if scope["method"] == "POST" else None
        except Refusal as refusal:
            await JSONResponse(refusal.body(), refusal.status)(scope, receive, send_guarded)
            return
        await self._app(scope, receive if body is None else _given(body, receive), send_guarded)

    def _check(self, scope: MutableMapping[str, Any]) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = _without_port(headers.get(b"host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise Refusal(
                403, f"This server is not called {host[:100]!r}: ask it by the address it is bound to."
            )
        if scope["method"] != "POST":
            return
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "A body has to be JSON: send it with Content-Type: application/json.")
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > self._most:
            raise self._too_large()

    async def _body(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "The body ends before its end.")
            body += message.get("body", b"")
            if len(body) > self._most:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body is larger than the {self._most} bytes that this server takes.")


def _given(body: bytes, receive: Receive) -> Receive:
    """A receive that gives ``body`` at once, then what comes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return left.pop() if left else await receive()

    return given


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() and not name.endswith(":") else host).strip("[]").lower()
