"""Which weights of a GGUF folder are packed, as its ``config.json`` records them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress_kernels.layouts import Dense, layout_from_json

from compress.checkpoint.source import Source
from compress.formats.packed_weight import PackedWeight


def read_gguf(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    """Name → packed weight; a dense one only where it is no tensor of the checkpoint by itself."""
    found = {}
    for name, entry in config["weights"].items():
        layout = layout_from_json(entry["layout"])
        if isinstance(layout, Dense) and f"{name}.weight" in entry["sources"]:
            continue
        shape = (int(entry["shape"][0]), int(entry["shape"][1]))
        found[name] = PackedWeight(layout, shape, dict.fromkeys(layout.specs(shape), f"{name}.weight"))
    return found
