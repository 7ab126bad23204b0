"""Healing by several processes: the training of one process but for rounding, and one sentence for what cannot be shared."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.errors import UserError
from compress.healing import loop
from compress.healing.shares import Shares, check_same, check_shares
from compress.healing.stage import Healed, heal, heal_together
from compress.recipe.recipe import heal_of
from compress.runtime.load import load
from compress.system.ranks import Ranks, joined

SHORT: dict[str, Any] = {
    "tokens": 1024,
    "length": 32,
    "batch": 4,
    "holdout": 5,
    "evaluations": 4,
    "rate": 0.02,
}
"""Eight steps of four windows, and a hold-out that two processes cannot halve."""
Compressed = Callable[..., tuple[Path, Path]]


def _as_rank(rank: int, port: int, work: Callable[[Ranks], Any]) -> Any:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} | place
    with joined({}) as ranks:
        assert ranks is not None
        return work(ranks)


def both(work: Callable[[Ranks], Any], other: Callable[[Ranks], Any] | None = None) -> Any:
    """What ``work`` returns as the first of two processes; the second, forked from this one, does ``other`` or the same."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.get_context("fork").Process(target=_as_rank, args=(1, port, other or work))
    before = dict(os.environ)
    process.start()
    try:
        return _as_rank(0, port, work)
    finally:
        os.environ.clear()
        os.environ |= before
        process.join(120)


def arguments(source: Path, text: Path, new: Path, train: Any, **settings: Any) -> dict[str, Any]:
    return {
        "source": source,
        "data": str(text),
        "train": train,
        "settings": {**SHORT, **settings},
        "new": new,
        "seed": 0,
        "device": "cpu",
        "dtype": "fp32",
        "overwrite": False,
        "restart": False,
        "trust_remote_code": False,
        "progress": None,
    }


@pytest.mark.parametrize(
    ("name", "train", "settings"),
    [
        ("grid", ["norms", "scales"], {}),
        ("sparse", ["values"], {"loss": ["kl", "hidden"]}),
        ("grid", ["norms"], {"optimizer": "spsa", "rate": 0.01}),
        ("grid", ["scales"], {"rate": "auto", "penalties": [{"name": "flat"}]}),
        ("grid", ["norms"], {"cache": {"k": 256}, "schedule": "growing", "batch": 2}),
        ("narrow", ["norms", "values"], {"dress": {"share": 0.5}, "rate": 0.003}),
    ],
)
def test_two_processes_train_what_one_does(
    name: str, train: Any, settings: dict[str, Any], compressed: Compressed, text: Path, tmp_path: Path
) -> None:
    out, source = compressed(name)
    alone = heal(out, **arguments(source, text, tmp_path / "alone", train, **settings))
    asked = arguments(source, text, tmp_path / "together", train, **settings)
    together = both(lambda ranks: heal_together(out, ranks, asked))
    assert isinstance(together, Healed)
    first, second = alone.report.healing, together.report.healing
    assert first is not None
    assert second is not None
    assert first.end_kl < first.start_kl
    assert second.end_kl == pytest.approx(first.end_kl, rel=1e-3)
    assert [point.tokens for point in second.points] == [point.tokens for point in first.points]
    ids = torch.arange(2, 34).unsqueeze(0)
    with torch.no_grad():
        logits = [load(one.out, dtype=torch.float32)(ids).logits for one in (alone, together)]
    torch.testing.assert_close(logits[1], logits[0], rtol=0.02, atol=0.02)


def test_a_process_that_dies_leaves_a_training_that_goes_on(
    compressed: Compressed, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, source = compressed("grid")
    asked = arguments(source, text, tmp_path / "out", ["norms", "scales"])
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_STATES", 0)
    step, done = loop.Training._step, []

    def dies(ranks: Ranks) -> None:
        def third(training: Any, state: Any, steps: Any) -> None:
            if len(done) == 3:
                os._exit(1)
            done.append(state)
            step(training, state, steps)

        monkeypatch.setattr(loop.Training, "_step", third)
        heal_together(out, ranks, asked)

    with pytest.raises(UserError, match="one of 2 ranks ended before its work was done"):
        both(lambda ranks: heal_together(out, ranks, asked), dies)
    assert not (tmp_path / "out").exists()
    steps = []
    monkeypatch.setattr(
        loop.Training, "_step", lambda one, state, own: (steps.append(state.step), step(one, state, own))
    )
    heal(out, **asked)
    assert steps[0] == 3


def test_shares_are_everything_once() -> None:
    for size in (1, 2, 3, 5):
        parts = [Shares(Ranks(rank, size)).own(5) for rank in range(size)]
        assert [place for part in parts for place in range(5)[part]] == list(range(5))
    assert Shares().own(5) == slice(0, 5)
    assert Shares().total(2.5) == 2.5


def test_windows_of_steps_are_dealt_out_by_their_numbers() -> None:
    places = [Shares(Ranks(rank, 2)).own_places([3, 4, 1]) for rank in range(2)]
    assert places == [[0, 3, 4], [1, 2, 5, 6, 7]]
    assert Shares().own_places([3, 4, 1]) == list(range(8))


def test_gradients_that_one_process_has_reach_all() -> None:
    def work(ranks: Ranks) -> list[Any]:
        masters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
        masters[0].grad = torch.full((2,), 1.0 + ranks.rank)
        if ranks.rank:
            masters[1].grad = torch.tensor([4.0, 5.0])
        Shares(ranks).add_gradients(masters)
        return [None if one.grad is None else one.grad.tolist() for one in masters]

    assert both(work) == [[3.0, 3.0], [4.0, 5.0], None]


def test_what_is_not_shared() -> None:
    windows = torch.zeros(8, 4, dtype=torch.int64)
    plain = heal_of({"train": ["norms"], "batch": 4})
    check_shares(plain, (), windows, Ranks(0, 4))
    with pytest.raises(
        UserError, match="5 ranks are more than the 4 windows of a step or the hold-out: start at most 4"
    ):
        check_shares(plain, (), windows, Ranks(0, 5))
    with pytest.raises(UserError, match="3 ranks are more than the 2 windows"):
        check_shares(plain, (2, 4, 8), windows, Ranks(0, 3))


def test_processes_that_read_other_files_all_notice() -> None:
    def told(ranks: Ranks) -> str:
        try:
            check_same(("a" if ranks.rank else "b") * 64, ranks)
        except UserError as error:
            return str(error)
        return ""

    sentence = (
        "rank 1 reads another checkpoint, source, teacher or text than rank 0: give all ranks the same files"
    )

    def noticed(ranks: Ranks) -> None:
        assert told(ranks) == sentence
        ranks.send(0, told is not None)

    assert both(lambda ranks: (told(ranks), ranks.receive(1)), noticed) == (sentence, True)
    assert both(lambda ranks: check_same("a" * 64, ranks)) is None


def test_another_text_on_one_process_is_refused(compressed: Compressed, text: Path, tmp_path: Path) -> None:
    out, source = compressed("grid")
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1])

    def heals(given: Path) -> Callable[[Ranks], Any]:
        asked = arguments(source, given, tmp_path / "out", ["norms"])
        return lambda ranks: heal_together(out, ranks, asked)

    with pytest.raises(
        UserError, match="rank 1 reads another checkpoint, source, teacher or text than rank 0"
    ):
        both(heals(text), heals(other))
    assert not (tmp_path / "out").exists()


def test_torchrun(compressed: Compressed, text: Path, tmp_path: Path) -> None:
    out, source = compressed("grid")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "compress_cli", "heal", str(out), "--source", str(source), "--data", str(text)]
    sizes = [
        "--tokens",
        "256",
        "--rate",
        "0.02",
        "--set",
        "length=32",
        "--set",
        "holdout=4",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [*torchrun, *command, "--train", "norms", *sizes, "-o", str(tmp_path / "new")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is healed and verified") == 1
    assert (tmp_path / "new" / "compress.json").is_file()
