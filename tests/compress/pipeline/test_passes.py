"""Passes of other settings are refused, and deleted on demand."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.errors import UserError
from compress.pipeline.passes import check_passes, discard_passes, pass_folder, pass_folders
from compress.system.monitor import Monitor

SETTINGS = {"recipe": {"bits": 4}, "source": {"files": {"model.safetensors": (1, 2)}}}


def interrupted(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), pass_folder(folder, SETTINGS):
        (folder / "1.safetensors").touch()
        raise KeyboardInterrupt


def test_an_unfinished_pass_of_other_settings_is_refused(tmp_path: Path) -> None:
    folders = pass_folders(tmp_path / "out")
    check_passes(folders, SETTINGS, restart=False)
    interrupted(folders["sensitivity"])
    check_passes(folders, SETTINGS, restart=False)
    other = {**SETTINGS, "recipe": {"bits": 3}}
    with pytest.raises(UserError, match=r"recipe\.bits \(4, now 3\)"):
        check_passes(folders, other, restart=False)
    check_passes(folders, other, restart=True)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_leaves_none(tmp_path: Path) -> None:
    folders = pass_folders(tmp_path / "out")
    interrupted(folders["width"])
    folders["sensitivity"].mkdir()
    (folders["sensitivity"] / "theirs").touch()
    discard_passes(folders)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial.sensitivity"]


@pytest.mark.parametrize("content", ["", "[]", "3", "[" * 100_000])
def test_damaged_settings_count_as_others(tmp_path: Path, content: str) -> None:
    folders = pass_folders(tmp_path / "out")
    interrupted(folders["width"])
    (folders["width"] / "settings.json").write_text(content)
    with pytest.raises(UserError, match="what differs"):
        check_passes(folders, SETTINGS, restart=False)


def test_what_interrupted_passes_have_spent_is_counted_once(tmp_path: Path) -> None:
    folders = pass_folders(tmp_path / "out")

    def spend(seconds: float, peak: int) -> Monitor:
        with (
            pytest.raises(KeyboardInterrupt),
            Monitor() as monitor,
            pass_folder(folders["width"], SETTINGS, monitor),
            pass_folder(folders["sensitivity"], SETTINGS, monitor),
        ):
            monitor.seconds["prune"] = monitor.seconds.get("prune", 0.0) + seconds
            monitor.peaks["prune"] = max(monitor.peaks.get("prune", 0), peak)
            (folders["width"] / "1.safetensors").touch()
            (folders["sensitivity"] / "1.safetensors").touch()
            raise KeyboardInterrupt
        return monitor

    assert spend(5.0, 70).seconds["prune"] == 5.0
    second = spend(2.0, 50)
    assert (second.seconds["prune"], second.peaks["prune"]) == (7.0, 70)
    (folders["width"] / "times.json").write_text("[")
    third = spend(1.0, 10)
    assert third.seconds["prune"] == 8.0
    assert third.wall > 0
