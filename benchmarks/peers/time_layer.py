# ruff: noqa: PLC0415 (every tool is imported in its own environment only)
"""One packed linear layer of a tool beside the bf16 layer, in the tool's own environment; JSON on stdout.

``python time_layer.py TOOL '{"shapes": [[4096, 4096]], "rows": [1], "threads": 1, "seconds": 3}'``: needs torch and the tool.
Weights rotate over more than twice the last-level cache; calls are interleaved, medians are taken.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTATION = 80 << 20
GROUP = 128

Layer = Callable[[Tensor], Tensor]


def plain(weight: Tensor) -> nn.Linear:
    """A bf16 layer that holds ``weight`` ``[out, in]``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def torchao(weight: Tensor) -> dict[str, Layer]:
    """Its int4 for the CPU, and int8 with and without rounded activations."""
    from torchao.prototype.quantization.int4 import (  # type: ignore[import-not-found]
        PrototypeInt4WeightOnlyConfig,
    )
    from torchao.quantization import (  # type: ignore[import-not-found]
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    made = {}
    for name, config in (
        ("torchao int4", PrototypeInt4WeightOnlyConfig(group_size=GROUP)),
        ("torchao int8", Int8WeightOnlyConfig()),
        ("torchao w8a8", Int8DynamicActivationInt8WeightConfig()),
    ):
        holder = nn.Sequential(plain(weight))
        quantize_(holder, config)
        made[name] = holder[0]
    return made


def quanto(weight: Tensor) -> dict[str, Layer]:
    """qint4 and qint8 weights."""
    from optimum.quanto import freeze, qint4, qint8, quantize  # type: ignore[import-not-found]

    made = {}
    for name, kind in (("quanto int4", qint4), ("quanto int8", qint8)):
        holder = nn.Sequential(plain(weight))
        quantize(holder, weights=kind)
        freeze(holder)
        made[name] = holder[0]
    return made


def bitsandbytes(weight: Tensor) -> dict[str, Layer]:
    """NF4."""
    import bitsandbytes as bnb  # type: ignore[import-not-found]

    four = bnb.nn.Linear4bit(
        weight.shape[1], weight.shape[0], bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
    )
    four.weight = bnb.nn.Params4bit(weight, quant_type="nf4", requires_grad=False)
    return {"bitsandbytes nf4": four.to("cpu").eval()}


def grid(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit codes ``[out, in]``, scales and zeros ``[out, groups]``."""
    wide = weight.float().view(weight.shape[0], -1, GROUP)
    scale = (wide.abs().amax(-1) / 7).clamp_min(1e-6)
    codes = (wide / scale.unsqueeze(-1)).round().clamp(-8, 7) + 8
    return codes.view(weight.shape).to(torch.int32), scale, torch.full_like(scale, 8)


def gptqmodel(weight: Tensor) -> dict[str, Layer]:
    """The kernels that it has for a CPU."""
    from gptqmodel.nn_modules.qlinear.torch_aten_kernel import (  # type: ignore[import-not-found]
        TorchAtenLinear,
    )
    from gptqmodel.nn_modules.qlinear.torch_fused import TorchFusedLinear  # type: ignore[import-not-found]

    out, columns = weight.shape
    codes, scale, zero = grid(weight)
    holder = plain((codes.sub(8) * scale.repeat_interleave(GROUP, 1)).to(torch.bfloat16))
    made = {}
    for name, kind in (("gptqmodel aten int4", TorchAtenLinear), ("gptqmodel fused int4", TorchFusedLinear)):
        kind.cached_validate_once()
        layer = kind(
            bits=4, group_size=GROUP, sym=True, desc_act=False, in_features=columns, out_features=out
        )
        layer.pack(
            holder,
            scale,
            zero.to(torch.int32),
            torch.arange(columns, dtype=torch.int32) // GROUP,
        )
        layer.qzero_format(2)
        layer.post_init()
        made[name] = layer.to(torch.bfloat16).eval()
    return made


def autoroundlib(weight: Tensor) -> dict[str, Layer]:
    """Its woqgemm, fp32 in and out of the kernel; it chooses what it computes in."""
    from auto_round_kernel.qlinear import QuantLinear  # type: ignore[import-not-found]

    out, columns = weight.shape
    codes, scale, _ = grid(weight)
    layer = QuantLinear(4, GROUP, True, columns, out, False)
    words = codes.T.reshape(columns // 8, 8, out).to(torch.int64)
    packed = (words << (4 * torch.arange(8).view(1, 8, 1))).sum(1)
    layer.qweight.copy_(torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32))
    layer.qzeros.fill_(0x77777777)
    layer.scales.copy_(scale.T)
    layer.post_init()
    return {"auto-round-lib int4": layer}


def compress(weight: Tensor) -> dict[str, Layer]:
    """Ours, for the same table."""
    from compress_kernels.layouts import PackedInteger, PlainInteger
    from compress_kernels.ops.table import prepare

    shape = (weight.shape[0], weight.shape[1])
    codes, scale, _ = grid(weight)
    four, eight, plain8 = PackedInteger(4, GROUP), PackedInteger(8, GROUP), PlainInteger(8, "channel")
    row = weight.float().abs().amax(1, keepdim=True) / 127
    signed = (weight.float() / row).round().to(torch.int32) + 128
    wide = signed.clamp(0, 255)
    return {
        "compress w4": prepare(four, four.encode(codes, scale), shape),
        "compress w8": prepare(eight, eight.encode(wide, row.expand(-1, scale.shape[1])), shape),
        "compress w8a8": prepare(plain8, plain8.encode(wide, row), shape),
    }


TOOLS: dict[str, Callable[[Tensor], dict[str, Layer]]] = {
    made.__name__: made for made in (torchao, quanto, bitsandbytes, gptqmodel, autoroundlib, compress)
}


def copies(tool: str, shape: tuple[int, int]) -> dict[str, list[Layer]]:
    """bf16 and the tool's layers, each as often as it takes to leave the caches (int4 counts)."""
    count = max(2, -(-ROTATION // (shape[0] * shape[1] // 2)))
    found: dict[str, list[Layer]] = {"bf16": []}
    for _ in range(count):
        weight = (torch.randn(shape) * 0.02).to(torch.bfloat16)
        if len(found["bf16"]) * 2 * weight.numel() < ROTATION:
            found["bf16"].append(plain(weight))
        for name, layer in TOOLS[tool](weight.clone()).items():
            found.setdefault(name, []).append(layer)
            if len(found[name]) == 1:
                _check(name, layer, weight)
    return found


def _check(name: str, layer: Layer, weight: Tensor) -> None:
    x = torch.randn(3, weight.shape[1]).to(torch.bfloat16)
    y, expected = layer(x).float(), F.linear(x, weight).float()
    error = float((y - expected).norm() / expected.norm())
    if not error < 0.3:
        raise SystemExit(f"{name} computes something else: relative error {error:.2g}")


@torch.inference_mode()
def main() -> None:
    """Measure what the request names."""
    tool, request = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(request["threads"])
    clock = time.thread_time if request["threads"] == 1 else time.perf_counter
    table: list[dict[str, Any]] = []
    for shape in request["shapes"]:
        layers = copies(tool, tuple(shape))
        for rows in request["rows"]:
            x = torch.randn(rows, shape[1]).to(torch.bfloat16)
            for layer in (layer for found in layers.values() for layer in found):
                layer(x[:1])  # some repack at the first call
            samples: dict[str, list[float]] = {name: [] for name in layers}
            end, turn = time.perf_counter() + request["seconds"], 0
            while turn < 5 or time.perf_counter() < end:
                for name, found in layers.items():
                    start = clock()
                    found[turn % len(found)](x)
                    samples[name].append(clock() - start)
                turn += 1
            medians = {name: statistics.median(times) for name, times in samples.items()}
            table += [
                {"shape": shape, "rows": rows, "threads": request["threads"], "name": name, "ms": round(1e3 * value, 4),
                 "bf16_ms": round(1e3 * medians["bf16"], 4), "speedup": round(medians["bf16"] / value, 3)}
                for name, value in medians.items() if name != "bf16"
            ]  # fmt: skip
    print(json.dumps(table))


if __name__ == "__main__":
    main()
