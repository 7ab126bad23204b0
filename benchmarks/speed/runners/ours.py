"""The same figures as ``llamacpp.py`` measures, of a checkpoint by ``compress.load``: one line of JSON.

``python -m benchmarks.speed.runners.ours FOLDER THREADS PROMPT NEW REPEATS``; without the last three it answers ``turns.py``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.speed.runners.clocks import SHORT, TURN, WARM, answer, now, prompt_of, resident, since
from compress.runtime.decoding import Decoder
from compress.runtime.generate import Clock, run
from compress.runtime.load import load


@dataclass
class Clocks(Clock):
    """Notes the processor's time beside the clock's."""

    processor: list[float] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        super().put(value)
        self.processor.append(time.process_time())

    def between(self, first: int, last: int) -> list[float]:
        """Seconds of the clock and of the processor from one token to another."""
        return [self.times[last] - self.times[first], self.processor[last] - self.processor[first]]


def _generated(decoder: Decoder, ids: Tensor, new: int) -> Clocks:
    clocks = Clocks()
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    run(decoder, ids, clocks, settings)
    return clocks


def measure(folder: str, threads: int, prompt: int, new: int, repeats: int) -> dict[str, object]:
    """Load, the first token, then prompts of ``prompt`` tokens, and ``new`` tokens after short prompts."""
    torch.set_num_threads(threads)
    before, start = resident(), now()
    decoder = Decoder(load(folder, dtype=torch.bfloat16))
    ids = torch.tensor([prompt_of(prompt)])
    _generated(decoder, ids[:, :SHORT], 1)
    first = since(start)
    prefill, decode = [], []
    for _ in range(repeats):
        start = now()
        _generated(decoder, ids, 1)
        prefill.append(since(start))
        decode.append(_generated(decoder, ids[:, :SHORT], new + WARM + 1).between(WARM + 1, WARM + new + 1))
    after = resident()
    return {
        "first_token": first,
        "prefill": prefill,
        "decode": decode,
        "resident": {key: after[key] - before[key] for key in after},
        "note": decoder.note,
    }


def turns(folder: str, threads: int) -> None:
    """Load, then decode :data:`TURN` tokens after a short prompt for every line of the input."""
    torch.set_num_threads(threads)
    decoder = Decoder(load(folder, dtype=torch.bfloat16))
    ids = torch.tensor([prompt_of(SHORT)])
    _generated(decoder, ids, TURN)
    answer(lambda: _generated(decoder, ids, TURN + WARM + 1).between(WARM + 1, WARM + TURN + 1))


if __name__ == "__main__" and len(sys.argv) == 3:
    turns(sys.argv[1], int(sys.argv[2]))
elif __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:6]))))
