from __future__ import annotations

import math

import pytest

from compress.system import units as words


@pytest.mark.parametrize(
    ("call", "value", "expected"),
    [
        (words.in_bytes, 0, "0 B"),
        (words.in_bytes, 999, "999 B"),
        (words.in_bytes, 25_181_944, "25.2 MB"),
        (words.in_bytes, 999_999, "1.00 MB"),
        (words.in_bytes, 8.1e9, "8.10 GB"),
        (words.in_bytes, None, "–"),
        (words.in_parameters, 12_585_600, "12.6 M"),
        (words.in_parameters, 640, "640"),
        (words.in_time, 0.34, "340 ms"),
        (words.in_time, 4.24, "4.2 s"),
        (words.in_time, 185, "3 min 05 s"),
        (words.roughly, 0.2, "5 s"),
        (words.roughly, 47, "45 s"),
        (words.roughly, 400, "7 min"),
        (words.roughly, 1500, "25 min"),
        (words.roughly, 9000, "2 h"),
        (words.roughly, None, "–"),
        (words.in_time, 7620, "2 h 07 min"),
        (words.in_time, None, "–"),
        (words.figure, -1.5, "−1.50"),
        (words.figure, math.inf, "∞"),
        (words.figure, math.nan, "–"),
        (words.divergence, 0.0029, "0.0029"),
        (words.divergence, 0.000081, "0.000081"),
        (words.divergence, 0.0, "0"),
        (words.divergence, 1.23456, "1.2346"),
        (words.divergence, 12.3456, "12.35"),
        (words.divergence, -1e-9, "-0.000000001"),
        (words.error_percent, 0.000374, "0.037%"),
        (words.error_percent, 0.0123, "1.2%"),
        (words.error_percent, 0.37, "37%"),
        (words.error_percent, 0.0, "0%"),
        (words.error_percent, None, "–"),
        (words.rate, 3032.06, "3,032"),
        (words.rate, 17.42, "17.4"),
    ],
)
def test_figures(call: object, value: float | None, expected: str) -> None:
    assert call(value) == expected


@pytest.mark.parametrize(
    ("name", "block", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", 3, "self_attn.q_proj"),
        ("transformer.h.0.attn.c_proj", 0, "attn.c_proj"),
        ("model.layers.3.mlp.experts.3.gate_proj", 3, "mlp.experts.gate_proj"),
        ("lm_head", None, "lm_head"),
        ("odd", 2, "odd"),
    ],
)
def test_the_role_of_a_weight(name: str, block: int | None, expected: str) -> None:
    assert words.role(name, block) == expected


def test_roles_are_shortened_as_far_as_they_stay_apart() -> None:
    roles = ["attn.c_attn", "attn.c_proj", "mlp.c_proj", "mlp.c_fc", "c_fc", "attn.c_attn"]
    assert words.short_roles(roles) == {
        "attn.c_attn": "c_attn",
        "attn.c_proj": "attn.c_proj",
        "mlp.c_proj": "mlp.c_proj",
        "mlp.c_fc": "mlp.c_fc",
        "c_fc": "c_fc",
    }
