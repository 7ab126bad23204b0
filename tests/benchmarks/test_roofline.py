"""The roofline: loops of a disassembly, bytes and bounds; no kernel is compiled here."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.roofline import CHIPS, Loop, bounds, loops, measured, moved_bytes
from tools.aot import WORDS

TEXT = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LOP3.LUT R2, R1, 0xf, RZ, 0xc0, !PT ;
        /*0020*/                   FADD R3, R2, -8 ;
        /*0030*/              @!P0 BRA 0x10 ;
        /*0040*/                   BRA 0x60 ;
        /*0060*/                   EXIT ;
"""


def test_a_loop_goes_from_the_target_of_a_backward_branch_to_the_branch() -> None:
    assert loops(TEXT) == [3]


def test_bytes_count_codes_scales_and_activations_once() -> None:
    weight = next(weight for weight in WORDS if weight.name == "w4")
    assert moved_bytes(weight, (256, 512), 1) == 256 * 512 / 2 + 256 * 4 * 2 + 2 * (256 + 512)


def test_the_bound_is_the_slowest_resource() -> None:
    weight = next(weight for weight in WORDS if weight.name == "w4")
    loop = Loop(instructions=512, weights=8192, warps=4)
    assert loop.per_weight == 8
    least = bounds(weight, loop, CHIPS["H200"], (4096, 4096), 1)
    assert max(least, key=lambda resource: least[resource]) == "issue"
    assert round(least["issue"], 2) == round(8 * 4096 * 4096 / (128 * 132 * 1980), 2)


def test_measured_figures_are_found(tmp_path: Path) -> None:
    line = {"rows": 1, "ms": 0.03, "graph_ms": 0.01}
    rows = [{"weight": "w4", "shape": [4, 4], "table": [line]}, {"name": "copy"}]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"parts": {"timing": {"rows": rows}}}))
    assert measured(path) == {("w4", (4, 4), 1): 10.0}
    assert measured(tmp_path / "none") == {}
