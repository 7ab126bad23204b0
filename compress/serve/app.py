"""The routes: OpenAI's models, completions and chat, and a page to chat in."""

from __future__ import annotations

import logging
import re
import time
from importlib.resources import files
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from compress.errors import UserError

from .answers import LAST_EVENT, Refusal, Shape, event
from .engine import Asked
from .requests import ChatRequest, Common, CompletionRequest
from .service import ClientGone, Closing, Service, until_gone
from .turns import Full, Ticket

_LOG = logging.getLogger(__name__)
_PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
_KINDS = re.compile(r"\[|^(str|int)$")
"""Names of types, which pydantic puts into the place of a field that may be of several."""
_CLIENT_GONE = 499
"""The status of a request that nobody waits for, as nginx writes it in its log."""


def build_app(service: Service, default_tokens: int) -> FastAPI:
    """The application.

    Args:
        service: what answers.
        default_tokens: of an answer whose request names no number.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_page(app)
    routes = _Routes(service, default_tokens)
    app.get("/health")(routes.health)
    app.get("/v1/models")(routes.models)
    app.get("/v1/models/{name:path}")(routes.model)
    app.post("/v1/completions", response_model=None)(routes.completions)
    app.post("/v1/chat/completions", response_model=None)(routes.chat)
    return app


class _Routes:
    def __init__(self, service: Service, default_tokens: int) -> None:
        self._service, self._engine, self._default = service, service.engine, default_tokens
        self._since = int(time.time())

    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> dict[str, Any]:
        self._check_name(name)
        return self._model()

    async def completions(self, request: Request, body: CompletionRequest) -> Response:
        self._check_name(body.model)
        prompt = body.only_prompt
        if prompt is None:
            raise Refusal(400, "One prompt at a time: send a text or a list of token ids.", param="prompt")
        if isinstance(prompt, str):
            tokens = await anyio.to_thread.run_sync(self._engine.text_tokens, prompt)
        else:
            tokens = self._engine.given_tokens(prompt)
        return await self._answer(request, body, tokens, body.max_tokens, chat=False)

    async def chat(self, request: Request, body: ChatRequest) -> Response:
        self._check_name(body.model)
        messages = [message.plain() for message in body.messages]
        tokens = await anyio.to_thread.run_sync(self._engine.chat_tokens, messages)
        return await self._answer(request, body, tokens, body.most_tokens, chat=True)

    def _model(self) -> dict[str, Any]:
        about = {"max_model_len": self._engine.room, "chat": self._engine.chats}
        return {
            "id": self._engine.name,
            "object": "model",
            "created": self._since,
            "owned_by": "compress",
            **about,
        }

    def _check_name(self, name: str | None) -> None:
        if name is not None and name != self._engine.name:
            said = f"There is no model {name[:100]!r} here: ask for {self._engine.name!r}."
            raise Refusal(404, said, "model_not_found", "model")

    def _most(self, prompt: int, wanted: int | None) -> int:
        """New tokens at most; by default as many as there is room for, up to the server's number."""
        room = self._engine.room
        most = (
            (self._default if room is None else min(self._default, room - prompt))
            if wanted is None
            else wanted
        )
        if room is not None and (most < 1 or prompt + most > room):
            said = f"{prompt} tokens and {max(most, 1)} new ones are more than the {room} that this model takes: shorten "
            raise Refusal(400, said + "the prompt or ask for fewer.", "context_length_exceeded")
        return most

    async def _answer(
        self, request: Request, body: Common, tokens: tuple[int, ...], wanted: int | None, *, chat: bool
    ) -> Response:
        most = self._most(len(tokens), wanted)
        asked = Asked(tokens, most, body.temperature, body.top_p, body.stops, body.seed)
        shape = Shape(self._engine.name, chat)
        ticket = self._service.take_turn()
        if body.stream:
            return Events(self._service, ticket, asked, shape, usage=body.tells_usage)
        return await self._whole(request, ticket, asked, shape)

    async def _whole(self, request: Request, ticket: Ticket, asked: Asked, shape: Shape) -> Response:
        parts: list[str] = []

        async def emit(text: str) -> None:
            parts.append(text)

        try:
            answered = await until_gone(request.receive, self._service.answer(ticket, asked, emit))
        except ClientGone:
            return Response(status_code=_CLIENT_GONE)
        return JSONResponse(shape.whole("".join(parts), answered))


class Events(Response):
    """An answer as server-sent events, while it is made."""

    def __init__(self, service: Service, ticket: Ticket, asked: Asked, shape: Shape, *, usage: bool) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._service, self._ticket, self._asked, self._shape = service, ticket, asked, shape
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a client that goes away ends the answer."""
        try:
            await until_gone(receive, self._send(send))
        except (ClientGone, OSError):
            _LOG.info("the client left before the end of its answer")
        finally:
            self._ticket.release()

    async def _send(self, send: Send) -> None:
        async def tell(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def emit(text: str) -> None:
            await tell(event(self._shape.piece(text)))

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            if (first := self._shape.first()) is not None:
                await tell(event(first))
            answered = await self._service.answer(self._ticket, self._asked, emit)
        except Exception as error:
            await tell(event(refusal_of(error).body()), more=False)
            return
        await tell(event(self._shape.last(answered)))
        if self._usage:
            await tell(event(self._shape.counts(answered)))
        await tell(LAST_EVENT, more=False)


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an exception; a fault of ours is logged."""
    match error:
        case Refusal():
            return error
        case Full():
            return Refusal(
                429, "As many requests wait as this server takes: ask again later.", "queue_full", after=1
            )
        case Closing():
            return Refusal(503, "The server is being stopped.")
        case UserError():
            return Refusal(400, str(error))
        case HTTPException():
            return Refusal(error.status_code, f"{error.detail}.")
        case RequestValidationError():
            return _invalid(error)
    _LOG.error("a request failed", exc_info=error)
    return Refusal(500, f"The request failed here ({type(error).__name__}).")


def _invalid(error: RequestValidationError) -> Refusal:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Refusal(400, "The body is not JSON.")
    place = ".".join(str(part) for part in first["loc"][1:] if not _KINDS.search(str(part)))
    said = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = "there is no such field"
    return Refusal(400, f"{place}: {said}." if place else f"{said}.", param=place or None)


def _add_errors(app: FastAPI) -> None:
    async def refuse(request: Request, error: Exception) -> JSONResponse:
        refusal = refusal_of(error)
        headers = None if refusal.after is None else {"Retry-After": str(refusal.after)}
        return JSONResponse(refusal.body(), refusal.status, headers)

    for kind in (Refusal, Full, Closing, UserError, HTTPException, RequestValidationError, Exception):
        app.exception_handler(kind)(refuse)


def _add_page(app: FastAPI) -> None:
    folder = files("compress.serve").joinpath("page")

    def page(name: str, kind: str) -> Any:
        text = folder.joinpath(name).read_text(encoding="utf-8")

        async def answer() -> Response:
            return Response(text, media_type=kind)

        return answer

    for place, (name, kind) in _PAGE.items():
        app.get(f"/{place}")(page(name, kind))
