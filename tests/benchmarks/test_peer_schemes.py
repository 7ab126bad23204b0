"""A preset of compressed-tensors in the place of the integer grid of the peers' table."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.peers.jobs import Setting
from benchmarks.peers.table import entries_of

ARGUMENTS = {"ours": "", "methods": "rtn,gptq", "peers": "llmcompressor", "batch": 0}


def test_a_scheme_goes_to_the_peer_and_names_our_recipe() -> None:
    setting = Setting(Path("model"), "text", scheme="NVFP4A16")
    assert setting.label == "nvfp4a16-64x512-1t"
    ours, *theirs = entries_of(Namespace(**ARGUMENTS), setting)
    assert ours.options == {"recipe": "nvfp4a16", "set": {}}
    assert [(one.method, one.options) for one in theirs] == [
        ("gptq", {"scheme": "NVFP4A16"}),
        ("rtn", {"scheme": "NVFP4A16"}),
    ]


def test_a_peer_that_takes_no_scheme_is_refused() -> None:
    setting = Setting(Path("model"), "text", scheme="NVFP4A16")
    with pytest.raises(SystemExit, match="not hqq"):
        entries_of(Namespace(**{**ARGUMENTS, "peers": "hqq", "methods": "hqq"}), setting)


def test_without_a_scheme_nothing_changes() -> None:
    entries = entries_of(Namespace(**ARGUMENTS), Setting(Path("model"), "text"))
    assert [entry.label for entry in entries[:2]] == ["compress-w4-rtn", "compress-w4-gptq"]
    assert all(not entry.options for entry in entries[2:])
