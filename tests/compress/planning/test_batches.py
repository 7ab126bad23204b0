"""What the moments of a batch take while they are summed, against what the kernel holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compress_kernels import native

from compress.models.views import WeightView
from compress.planning.batches import inputs_seen, moment_buffers

BF16 = torch.bfloat16


def view(columns: int, expert: int | None = None) -> WeightView:
    return WeightView("w", "w", "linear", 0, (8, columns), expert, ("w",))


def seen(*needs: str, tokens: int = 2048, columns: int = 96, dtype: torch.dtype = BF16) -> int:
    return inputs_seen([view(columns)], {"w": frozenset(needs)}, tokens, dtype)


def test_a_gram_matrix_takes_one_copy_of_the_input() -> None:
    assert seen() == seen("fisher") == 0
    assert seen("gram") == seen("gram", "diagonal") == 4 * 2048 * 96


def test_other_moments_take_the_input_in_fp32_besides() -> None:
    for needs in (("diagonal",), ("gram", "mean_abs"), ("gram", "token_gradients")):
        assert seen(*needs) == 2 * 4 * 2048 * 96
    assert seen("gram", "cross") == (2 * 4 + 2) * 2048 * 96


def test_few_columns_are_filled_up_to_whole_tiles() -> None:
    assert seen("gram", tokens=8, columns=4) == moment_buffers(8, 4) == 4 * 4 * (32 + 12) > 4 * 8 * 4


def test_an_expert_may_be_sent_all_tokens() -> None:
    needs = {"w": frozenset({"gram"})}
    assert inputs_seen([view(96, expert=3)], needs, 2048, BF16) == 4 * 2048 * 96


def test_sixty_megabytes_are_enough_for_the_widest_input_of_an_8b_model() -> None:
    assert 58e6 < moment_buffers(2048, 14336) < 60e6
    assert moment_buffers(512, 14336) * 2 == moment_buffers(1 << 20, 14336)


GROWTH = """
import sys
from pathlib import Path
import torch
from compress_kernels import native

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

native.load()
columns, tokens = int(sys.argv[1]), 1024
inputs, sums = torch.ones(tokens, columns, dtype=torch.bfloat16), torch.ones(columns, columns)
add = torch.ops.compress_kernels.native_add_products
add(sums[:32, :32].contiguous(), inputs[:32, :32].contiguous(), None)
Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
before = status("VmRSS")
add(sums, inputs, None)
print(status("VmHWM") - before)
"""
"""In a process of its own: one that has freed memory grows by less."""


@pytest.mark.parametrize("columns", [1536, 3072])
def test_the_kernel_holds_what_is_counted(columns: int) -> None:
    if not Path("/proc/self/clear_refs").exists() or not native.load().vectorised:
        pytest.skip("needs Linux and the kernel of moments")
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(columns)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    grown, counted = int(done.stdout), moment_buffers(1024, columns)
    assert 0.9 * counted < grown < counted + (2 << 20)
