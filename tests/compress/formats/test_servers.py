"""Which servers read an output: by format, bits, groups, symmetry and the kind of weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from compress_kernels.layouts import Dense, Layout, PackedInteger, PlainInteger

from compress.formats.servers import SERVERS, servers_of
from compress.models.views import WeightView
from compress.recipe.registry import EXPORTERS


@dataclass(frozen=True)
class Weight:
    """A weight of a kind in a layout."""

    view: WeightView
    layout: Layout


def weight(layout: Layout, kind: Any = "linear") -> Weight:
    return Weight(WeightView("a", "a.weight", kind, 0, (64, 128), None, ("a.weight",)), layout)


def test_every_format_has_its_servers() -> None:
    assert SERVERS.keys() == EXPORTERS.keys()
    for format in SERVERS:
        assert servers_of(format, []) == SERVERS[format]


@pytest.mark.parametrize(
    ("layout", "kind", "read"),
    [
        (PackedInteger(4, 128), "linear", True),
        (PackedInteger(4, 32), "linear", True),
        (PackedInteger(8, "channel"), "linear", True),
        (PackedInteger(3, 64, symmetric=False), "linear", False),
        (PackedInteger(4, 16), "linear", False),
        (PackedInteger(4, 256), "linear", False),
        (PackedInteger(8, "tensor"), "linear", False),
        (PlainInteger(8, "channel"), "linear", True),
        (PackedInteger(4, 64), "embedding", True),
        (PackedInteger(8, 64), "embedding", True),
        (PackedInteger(6, 64), "embedding", False),
        (PackedInteger(4, 64, symmetric=False), "embedding", False),
        (PackedInteger(8, 64), "head", True),
        (PackedInteger(6, 64), "head", False),
    ],
)
def test_what_vllm_reads_of_compressed_tensors(layout: Layout, kind: str, read: bool) -> None:
    plain = weight(PackedInteger(4, 128))
    expected = ("transformers", "vllm") if read else ("transformers",)
    assert servers_of("compressed-tensors", [plain, weight(layout, kind)]) == expected


@pytest.mark.parametrize(
    ("layout", "read"),
    [
        (PackedInteger(4, 128), True),
        (PackedInteger(8, 64), True),
        (PackedInteger(3, 128), False),
        (PackedInteger(4, 128, symmetric=False), False),
    ],
)
def test_what_vllm_reads_of_gptq(layout: Layout, read: bool) -> None:
    assert ("vllm" in servers_of("gptq", [weight(layout)])) is read
    assert servers_of("gptq", [weight(layout)])[0] == "transformers"


def test_what_gptqmodel_reads() -> None:
    """Asymmetric GPTQ it opens in the second version, which is written; AWQ always has zero points."""
    asymmetric = weight(PackedInteger(4, 128, symmetric=False))
    assert servers_of("gptq", [weight(PackedInteger(4, 128)), asymmetric]) == ("transformers", "gptqmodel")
    assert "gptqmodel" in servers_of("gptq", [weight(PackedInteger(3, 128))])
    assert servers_of("awq", [asymmetric]) == ("transformers", "vllm", "gptqmodel")


def test_formats_that_hide_their_layout() -> None:
    """A dense copy is read whatever grid its values lie on; the native form by nobody else."""
    assert "vllm" in servers_of("dense", [weight(PackedInteger(4, 16))])
    assert servers_of("native", [weight(Dense())]) == ()
