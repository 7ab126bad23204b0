"""Predicted decode times from the shipped table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import kernel_times as benchmark
from compress.allocate.kernel_times import KernelTimes, kernel_times, parse_time, predicted_seconds
from compress.allocate.units import find_units
from compress.assets import kernel_times_file
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.planning.make import facts_of
from compress.recipe.runtimes import RUNTIMES


def test_times_are_read_with_their_unit_and_device() -> None:
    assert (parse_time("30ms-cpu").seconds, parse_time("30ms-cpu").device) == (0.03, "cpu")
    assert parse_time("800us-H200").seconds == pytest.approx(8e-4)


@pytest.mark.parametrize("text", ["30ms", "30-cpu", "0ms-cpu", "30ms-toaster", "30mm-cpu", "-1ms-cpu"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"write it like 30ms-cpu"):
        parse_time(text)


def test_the_shipped_table_is_that_of_the_results() -> None:
    shipped = json.loads(kernel_times_file().read_text(encoding="utf-8"))
    assert shipped == {"cpu": benchmark.cpu(), "h200": benchmark.gpu()}


def test_a_step_multiplies_all_weights_and_looks_up_embeddings(tiny_model: Callable[..., Path]) -> None:
    times = KernelTimes("a machine", {"dense": (1.0, 0.0), "int4": (0.0, 1.0)})
    for tied, embeddings in ((False, 0.0), (True, 1.0)):
        skeleton = open_skeleton(open_source(tiny_model("llama", tie_word_embeddings=tied)))
        units = find_units(skeleton, RUNTIMES["native"], facts_of(skeleton))
        found = predicted_seconds(units, times)
        inside = next(unit for unit in units if unit.block == 0)
        assert found[inside.name]["dense"] == 1.0
        assert found[inside.name]["int4-g32"] == inside.numel
        assert "int3-g32" not in found[inside.name]  # no kernel was measured
        assert found["model.embed_tokens"]["dense"] == embeddings


def test_experts_have_no_predicted_time(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("mixtral")))
    units = find_units(skeleton, RUNTIMES["native"], facts_of(skeleton))
    with pytest.raises(UserError, match="mixtures of experts"):
        predicted_seconds(units, kernel_times("cpu"))
