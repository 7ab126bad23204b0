"""Speed and memory of checkpoints side by side, each in a process of its own so that neither sees the other's memory."""

from __future__ import annotations

import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compress.errors import UserError
from compress.formats.dense_source import open_any
from compress.runtime.decoding import Decoder
from compress.runtime.generate import Clock, check_length, memory_now, open_model, run
from compress.system.monitor import Monitor, anonymous_bytes

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchSettings:
    """What is run: ``batch`` prompts of ``prompt_length`` random tokens and ``new_tokens`` after each, ``repeats`` times."""

    prompt_length: int = 128
    new_tokens: int = 32
    batch: int = 1
    repeats: int = 3
    threads: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class BenchFigures:
    """What was measured; rates count the tokens of the whole batch.

    Attributes:
        name: the checkpoint's.
        load_seconds: from the call to a model that can run.
        prefill_rates, decode_rates: tokens per second, one for each repeat.
        memory_bytes: what the process holds beyond its imports after the last run (on a GPU, what torch holds there).
        peak_bytes: the most that it held at any time, loading included.
        device, dtype, threads: what it ran on.
    """

    name: str
    load_seconds: float
    prefill_rates: tuple[float, ...]
    decode_rates: tuple[float, ...]
    memory_bytes: int | None
    peak_bytes: int | None
    device: str
    dtype: str
    threads: int

    @property
    def prefill(self) -> float:
        """The median rate."""
        return statistics.median(self.prefill_rates)

    @property
    def decode(self) -> float:
        """The median rate."""
        return statistics.median(self.decode_rates)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the medians included."""
        return {**asdict(self), "prefill": self.prefill, "decode": self.decode}


def bench(
    paths: Sequence[str | Path], settings: BenchSettings | None = None, *, rounds: int = 1
) -> list[BenchFigures]:
    """Measure checkpoints one after the other, a process each.

    Args:
        paths: folders or hub names.
        rounds: how often all are measured in turn, so that a machine which is busy for a while is busy for all.

    Raises:
        UserError: what is wrong with one of them, in its own words.
    """
    wanted = settings or BenchSettings()
    found: dict[str, list[BenchFigures]] = {str(path): [] for path in paths}
    for path in found:
        open_any(
            path, trust_remote_code=wanted.trust_remote_code
        )  # what is wrong is said before minutes have passed
    for _ in range(rounds):
        for path in found:
            _LOG.info("measuring %s in a process of its own", path)
            found[path].append(_alone(path, wanted))
    return [_joined(figures) for figures in found.values()]


def measure(path: str | Path, settings: BenchSettings) -> BenchFigures:
    """Measure a checkpoint in this process, which should hold nothing else."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with Monitor() as monitor:
        base = anonymous_bytes()
        start = time.perf_counter()
        model = open_model(
            path, settings.device, settings.dtype, trust_remote_code=settings.trust_remote_code
        )
        loaded = time.perf_counter() - start
        check_length(model, settings.prompt_length, settings.new_tokens)
        vocabulary = model.config.get_text_config().vocab_size
        shape = (settings.batch, settings.prompt_length)
        tokens = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))
        count = settings.new_tokens
        exact = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "num_beams": 1}
        # The first run pays for what is made once; it is not counted.
        decoder = Decoder(model)
        pairs = [_rates(decoder, tokens, {**exact, "pad_token_id": 0}) for _ in range(1 + settings.repeats)][
            1:
        ]
        gc.collect()
        held = memory_now(model.device, base)
    return BenchFigures(
        name=Path(path).name or str(path),
        load_seconds=loaded,
        prefill_rates=tuple(prefill for prefill, _ in pairs),
        decode_rates=tuple(decode for _, decode in pairs),
        memory_bytes=held,
        peak_bytes=max(held, monitor.peak or 0) if held is not None else None,
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _rates(decoder: Decoder, tokens: torch.Tensor, settings: Mapping[str, Any]) -> tuple[float, float]:
    clock = Clock()
    start = run(decoder, tokens, clock, dict(settings))
    decoded = tokens.shape[0] * (clock.new_tokens - 1)
    return tokens.numel() / (clock.times[1] - start), decoded / (clock.times[-1] - clock.times[1])


def _alone(path: str, settings: BenchSettings) -> BenchFigures:
    threads = {} if settings.threads is None else {"OMP_NUM_THREADS": str(settings.threads)}
    done = subprocess.run(
        [sys.executable, "-m", "compress.runtime.bench"],
        input=json.dumps({"path": path, "settings": asdict(settings)}),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads},
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise UserError(f"measuring {path} ended with status {done.returncode}; what it printed stands above")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise UserError(answer["error"])
    rates = {key: tuple(answer[key]) for key in ("prefill_rates", "decode_rates")}
    return BenchFigures(**{**answer, **rates})


def _joined(runs: Sequence[BenchFigures]) -> BenchFigures:
    """Several measurements of one checkpoint: all rates, the median of the rest."""
    memory = [run.memory_bytes for run in runs if run.memory_bytes is not None]
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return replace(
        runs[0],
        load_seconds=statistics.median(run.load_seconds for run in runs),
        prefill_rates=tuple(rate for run in runs for rate in run.prefill_rates),
        decode_rates=tuple(rate for run in runs for rate in run.decode_rates),
        memory_bytes=int(statistics.median(memory)) if memory else None,
        peak_bytes=int(statistics.median(peaks)) if peaks else None,
    )


def _work() -> None:
    """The measured process: a request on stdin, the answer as the last line on stdout."""
    request = json.load(sys.stdin)
    try:
        answer = asdict(measure(request["path"], BenchSettings(**request["settings"])))
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    _work()
