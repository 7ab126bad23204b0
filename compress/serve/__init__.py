"""A checkpoint behind OpenAI's API, for trying it on one's own machine.

Here: the engine (`engine`, `text_stream`), whose turn it is (`turns`, `service`), what is asked and answered (`requests`,
`answers`), the routes and the page (`app`, `guard`, `page/`). Not here: loading and decoding (`runtime`). Add a route: in
`app`. FastAPI and uvicorn are the extra `serve`.
"""

from __future__ import annotations

from .engine import Engine, open_engine
from .server import ServerSettings, serve

__all__ = ["Engine", "ServerSettings", "open_engine", "serve"]
