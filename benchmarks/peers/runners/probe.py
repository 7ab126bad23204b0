"""What every peer's runner shares: its job, its marks on the clock, and the token windows.

A runner is started by ``benchmarks.peers.table`` inside the peer's own environment as ``python run_<peer>.py JOB.json``.
This module needs nothing but torch and transformers, so that it can be imported in all of them.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

DECODED = "-decoded"
"""What a runner whose format plain transformers does not load adds to the output's name for the decoded copy."""


@dataclass(frozen=True)
class Job:
    """One compression that a peer is asked to do.

    Attributes:
        model: folder of the dense checkpoint.
        tokens: file of ``torch.save``, int64 ``[samples, length]``, the calibration windows that all tools get.
        text: the text that the windows were drawn from (for tools that draw them on their own).
        out: folder to write.
        events: JSON-lines file that receives the marks.
        method: ``rtn``, ``gptq``, ``awq``, ``hqq``, ``autoround``, ``sparsegpt``, ``wanda``.
        bits, group, symmetric: the integer grid (``bits`` is None where only pruning is asked for).
        sparsity, pattern: share of zeros, and ``"0:0"`` (unstructured) or ``"2:4"``.
        threads: threads of torch's operators.
        batch: calibration windows in one forward pass.
        options: what only this tool knows.
    """

    model: str
    tokens: str
    text: str
    out: str
    events: str
    method: str
    bits: int | None
    group: int
    symmetric: bool
    sparsity: float
    pattern: str
    threads: int
    batch: int
    samples: int
    length: int
    seed: int
    options: dict[str, Any]

    def windows(self) -> Tensor:
        """The calibration windows, int64 ``[samples, length]``."""
        return torch.load(self.tokens, weights_only=True)

    def mark(self, name: str) -> None:
        """Note this moment (the monotonic clock is one for all processes) and the processor time up to now.

        What happens after ``saved`` is not measured.
        """
        self.note(name=name, time=time.monotonic(), cpu=time.process_time())

    def note(self, **figures: Any) -> None:
        """Note figures that only the tool knows, such as ``linear_bytes``."""
        with Path(self.events).open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


def read_job() -> Job:
    """The job named on the command line; sets torch's threads as it says."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    torch.set_num_threads(job.threads)
    return job


def import_model(path: str) -> None:
    """Import the module of the model's class: it is a library's code, like the imports at the top of a runner."""
    config = AutoConfig.from_pretrained(path)
    AutoModelForCausalLM._model_mapping[type(config)]


def dense_linears(model: nn.Module, head: nn.Module) -> dict[str, Tensor]:
    """Every linear's weight but the head's, whatever its packing: its answer to the identity, ``[out, in]``."""
    found = {}
    for name, module in model.named_modules():
        if module is not head and hasattr(module, "in_features") and not list(module.children()):
            identity = torch.eye(module.in_features, dtype=torch.bfloat16)
            with torch.no_grad():
                answer = module(identity)
                bias = getattr(module, "bias", None)
                found[name] = (answer if bias is None else answer - bias).T.contiguous()
    return found


def save_decoded(job: Job, weights: dict[str, Tensor]) -> None:
    """Put decoded weights into the dense model and save it beside the output, for the evaluator."""
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    for name, weight in weights.items():
        with torch.no_grad():
            model.get_submodule(name).weight.copy_(weight)
    model.save_pretrained(job.out + DECODED)
    AutoTokenizer.from_pretrained(job.model).save_pretrained(job.out + DECODED)
