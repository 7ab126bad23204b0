"""`compress serve`: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

from compress_cli.main import app
from typer.testing import CliRunner

from compress.serve.server import bind


def test_from_the_first_line_to_ctrl_c(tiny_model: Callable[..., Path]) -> None:
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    url, found = f"http://127.0.0.1:{port}", []

    def ask() -> None:
        for _ in range(600):
            try:
                with urlopen(f"{url}/v1/models", timeout=10) as answer:
                    found.append(json.load(answer))
                    break
            except OSError:
                time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    model = tiny_model("llama")
    result = CliRunner().invoke(app, ["serve", str(model), "--port", str(port), "--name", "mine"])
    thread.join()
    assert result.exit_code == 130
    assert result.stdout == f"{url} has a page to chat in, {url}/v1 the API. Ctrl-C ends it.\n"
    assert result.stderr.endswith("compress: Stopped.\n")
    assert found[0]["data"][0]["id"] == "mine"


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "nowhere"), "--port", "0"])
    assert result.exit_code == 2
    assert "no folder" in result.stderr
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "embedded", "--port", port])
    assert result.exit_code == 2
    assert f"port {port}" in result.stderr
