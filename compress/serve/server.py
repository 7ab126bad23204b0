"""The server: a socket, the model behind it, and a clean end."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any

from compress.errors import UserError

from .engine import Engine

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CLOSE_SECONDS = 5
"""After so long, connections that do not close are cut."""


@dataclass(frozen=True)
class ServerSettings:
    """How requests are taken.

    Attributes:
        host, port: what to bind to; port 0 takes a free one.
        waiting: requests that may wait while another is answered.
        body_bytes: of a request at most.
        default_tokens: of an answer whose request names no number.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    waiting: int = 8
    body_bytes: int = 1 << 20
    default_tokens: int = 512


def library() -> ModuleType:
    """Uvicorn, FastAPI being there too.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        import fastapi  # noqa: F401, PLC0415  (optional)
        import uvicorn  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise UserError(
            f'Serving needs FastAPI and uvicorn, which do not load here ({error}): pip install "compress-llm[serve]".'
        ) from error
    module: ModuleType = uvicorn
    return module


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address is taken, not this machine's, or not an address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen at {host}, port {port} ({reason}): name another with --host or --port"
        ) from error


def serve(
    open_engine: Callable[[], Engine],
    settings: ServerSettings = ServerSettings(),
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a model until a signal ends it.

    Args:
        open_engine: loads the model; called once the socket is bound.
        settings: how requests are taken.
        ready: is told the address when the model is loaded.

    Raises:
        UserError: no FastAPI or uvicorn, an address that cannot be bound to, or what ``open_engine`` raises.
        KeyboardInterrupt: the end by Ctrl-C.
    """
    library()
    with bind(settings.host, settings.port) as listening:
        server = make_server(open_engine(), settings)
        host, port = listening.getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        server.run(sockets=[listening])


def make_server(engine: Engine, settings: ServerSettings) -> Any:
    """Uvicorn's server around the application; a signal to stop ends the answer that is being made."""
    uvicorn = library()
    from .app import build_app  # noqa: PLC0415  (FastAPI is optional)
    from .guard import Guard  # noqa: PLC0415
    from .service import Service  # noqa: PLC0415

    service = Service(engine, settings.waiting)
    app = Guard(build_app(service, settings.default_tokens), _hosts(settings.host), settings.body_bytes)

    class Server(uvicorn.Server):  # type: ignore[name-defined, misc]
        requests = service

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.close()
            super().handle_exit(sig, frame)

    return Server(
        uvicorn.Config(
            app,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
    )


def _hosts(host: str) -> frozenset[str] | None:
    """The names that a server may be called by: any, where more than this machine reaches it."""
    return frozenset({*LOOPBACK, host.lower()}) if is_local(host) else None


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
