"""Uploads to a stand-in of the hub's HTTP interface: all files arrive, and a stopped upload goes on."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from compress_cli.main import app
from huggingface_hub import constants
from typer.testing import CliRunner

import compress
from compress.errors import UserError
from compress.pipeline import hub as module
from compress.pipeline.hub import push_to_hub


class Hub:
    """What the stand-in holds, and how many more commits it takes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes | str] = {}  # a large file is the hash of its object
        self.commits = 0
        self.allowed = 1000
        self.uploads = 0

    def tree(self) -> list[dict[str, Any]]:
        entries = []
        for path, stored in self.files.items():
            if isinstance(stored, str):
                size = len(self.objects[stored])
                entry: dict[str, Any] = {
                    "oid": "0" * 40,
                    "size": size,
                    "lfs": {"oid": stored, "size": size, "pointerSize": 130},
                }
            else:
                digest = hashlib.sha1(f"blob {len(stored)}\0".encode() + stored).hexdigest()
                entry = {"oid": digest, "size": len(stored)}
            entries.append({"type": "file", "path": path, **entry})
        return entries

    def contents(self) -> dict[str, bytes]:
        return {path: self.objects[s] if isinstance(s, str) else s for path, s in self.files.items()}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def answer(self, data: Any, status: int = 200) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        self.answer(
            self.hub.tree() if "/tree/" in self.path else {"error": "not found"},
            200 if "/tree/" in self.path else 404,
        )

    def do_PUT(self) -> None:
        digest, data = self.path.rpartition("/")[2], self.body()
        assert hashlib.sha256(data).hexdigest() == digest
        self.hub.objects[digest] = data
        self.hub.uploads += 1
        self.answer({})

    def do_POST(self) -> None:
        here, data = f"http://{self.headers['Host']}", self.body()
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"{here}/user/model"})
        elif self.path.endswith("/validate-yaml"):
            self.answer({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            files = json.loads(data)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for f in files
            ]
            self.answer({"files": modes})
        elif self.path.endswith("/objects/batch"):
            objects = [
                {
                    **one,
                    **(
                        {}
                        if one["oid"] in self.hub.objects
                        else {"actions": {"upload": {"href": f"{here}/store/{one['oid']}"}}}
                    ),
                }
                for one in json.loads(data)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in data.splitlines()])
        else:
            self.answer({"error": self.path}, 404)

    def commit(self, lines: list[dict[str, Any]]) -> None:
        if self.hub.commits >= self.hub.allowed:
            self.answer({"error": "You have no more space"}, 403)
            return
        self.hub.commits += 1
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                self.hub.files[value["path"]] = value["oid"]
            elif line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
        here = f"http://{self.headers['Host']}"
        self.answer({"commitUrl": f"{here}/user/model/commit/{'1' * 40}", "commitOid": "1" * 40})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, str]]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    handler = type("OneHub", (Handler,), {"hub": Hub()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler.hub, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def out(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "out"
    compress.compress(tiny_model("llama"), "w4-rtn", folder, settings={"quantize.group_size": 32})
    (folder / ".notes").write_text("not for the hub")
    return folder


def local(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".notes"
    }


def test_all_files_arrive_and_are_sent_once(out: Path, hub: tuple[Hub, str]) -> None:
    state, endpoint = hub
    pushed = push_to_hub(out, "user/model", token="t", endpoint=endpoint)
    assert state.contents() == local(out)
    assert (pushed.sent, pushed.present) == (len(local(out)), 0)
    assert pushed.url == f"{endpoint}/user/model"
    again = push_to_hub(out, "user/model", token="t", endpoint=endpoint)
    assert (again.sent, again.present) == (0, len(local(out)))
    assert (state.uploads, state.commits) == (1, 2)


def test_a_stopped_upload_goes_on(out: Path, hub: tuple[Hub, str]) -> None:
    state, endpoint = hub
    state.allowed = 1
    with pytest.raises(UserError, match=r"user/model: the upload stopped .* the same command goes on"):
        push_to_hub(out, "user/model", token="t", endpoint=endpoint)
    assert list(state.files) == ["model.safetensors"]
    state.allowed = 1000
    pushed = push_to_hub(out, "user/model", token="t", endpoint=endpoint)
    assert pushed.present == 1
    assert state.uploads == 1
    assert state.contents() == local(out)


def test_the_command(out: Path, hub: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch) -> None:
    state, endpoint = hub
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", "t")
    done = CliRunner().invoke(app, ["push", str(out), "user/model"])
    assert done.exit_code == 0, done.stderr
    assert f"{endpoint}/user/model" in done.stdout
    assert state.contents() == local(out)


def test_only_what_is_as_it_was_written_is_sent(out: Path, tmp_path: Path, hub: tuple[Hub, str]) -> None:
    with pytest.raises(UserError, match="not a finished output"):
        push_to_hub(tmp_path, "user/model", token="t", endpoint=hub[1])
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in out.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="was changed after it was written"):
        push_to_hub(copy, "user/model", token="t", endpoint=hub[1])
    assert hub[0].files == {}


def test_an_upload_that_could_not_begin_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress, "compress", lambda *_, **__: pytest.fail("the model was compressed"))
    monkeypatch.setattr(module, "get_token", lambda: None)
    run = ["run", "embedded", "-r", "w8", "-o", str(tmp_path / "out"), "--push-to-hub"]
    for name, said in (("a b/c", "is no name of a repository"), ("user/model", "hf auth login")):
        done = CliRunner().invoke(app, [*run, name])
        assert done.exit_code == 2
        assert said in done.stderr
        (tmp_path / "compress.json").touch()
        with pytest.raises(UserError, match=said):
            push_to_hub(tmp_path, name)
    (tmp_path / "file").touch()
    for folder, said in ((tmp_path / "missing", "is no folder"), (tmp_path / "file", "is no folder")):
        with pytest.raises(UserError, match=said):
            push_to_hub(folder, "user/model")
