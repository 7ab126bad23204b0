"""Names of checkpoints: paths are looked for, names on the hub are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.checkpoint.names import check_exists, check_folder, is_path
from compress.errors import UserError


@pytest.mark.parametrize("name", ["./model", "../model", "/model", "~/model", "a/b/c", "a\\b", "", " "])
def test_names_that_can_only_be_paths(name: str) -> None:
    assert is_path(name)


@pytest.mark.parametrize("name", ["model", "user/model", "user/model.v1"])
def test_names_of_the_hub(name: str) -> None:
    assert not is_path(name)
    check_exists(name)


def test_a_path_must_be_there(tmp_path: Path) -> None:
    check_exists(str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"")
    check_exists(str(tmp_path / "model.gguf"))
    with pytest.raises(UserError, match="There is no folder"):
        check_exists(str(tmp_path / "none"))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    check_exists("~/")
    with pytest.raises(UserError, match="~/none"):
        check_exists("~/none")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_folder(name: str) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        check_exists(name)


def test_a_finished_checkpoint_is_a_folder(tmp_path: Path) -> None:
    check_folder(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "file")
    with pytest.raises(UserError, match="There is no folder"):
        check_folder(tmp_path / "none")
