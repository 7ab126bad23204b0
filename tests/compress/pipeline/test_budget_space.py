"""What can become of a model for a runtime, and the sentences where that is nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.allocate.amounts import Amount
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.pipeline.budget_space import open_space

ALL = Amount("bits", 16, "16 bits")


@pytest.mark.parametrize("runtime", ["transformers", "vllm"])
def test_a_runtime_that_runs_no_compressed_form(tiny_model: Callable[..., Path], runtime: str) -> None:
    name = "transformer.h.0.attn.c_attn"
    reason = rf"\({name} is a transposed Conv1D, .*\)"
    with pytest.raises(
        UserError, match=rf"^{runtime} can run no compressed form of this model {reason}: choose another"
    ):
        open_space(open_source(tiny_model("gpt2")), runtime, ALL)
    space, _ = open_space(open_source(tiny_model("gpt2")), "auto", ALL)
    assert space.runtime.name == "native"


def test_a_runtime_that_does_not_know_the_architecture(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r"^llama.cpp cannot run this model \(GGUF .*'opt'.*\): choose another --runtime.$"
    ):
        open_space(open_source(tiny_model("opt")), "llama.cpp", ALL)
