"""Native checkpoints in transformers' own `from_pretrained`, once compress is imported, and in `compress.load`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.modules import PackedEmbedding, PackedLinear
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

import compress
from compress.errors import UserError
from compress.runtime.experts import PackedExperts
from compress.runtime.registration import register
from compress.runtime.swap import tell_decoded

TOKENS = torch.arange(2, 26).view(2, 12) * 7 % 256
SYMMETRIC = {"bits": 4, "group_size": 16, "symmetric": True}
ASYMMETRIC = {"bits": 4, "group_size": 16, "symmetric": False}


@dataclass(frozen=True)
class Case:
    """A family, a recipe's step, how many modules run packed, and how near its logits are to the decoded model's."""

    family: str
    step: dict[str, Any]
    packed: int
    tolerance: float = 1e-2


WHOLE = {"quantize": ASYMMETRIC, "targets": ["linear", "experts"]}
CASES = {
    "llama": Case("llama", {"quantize": SYMMETRIC, "targets": ["linear", "lm_head"]}, 15),
    "tied embeddings": Case("llama_tied", {"quantize": SYMMETRIC, "targets": ["linear", "embeddings"]}, 15),
    "gpt2": Case("gpt2", {"quantize": ASYMMETRIC, "targets": ["linear", "embeddings"]}, 9),
    "mixtral": Case("mixtral", WHOLE, 32, 3e-2),
    "gpt-oss": Case("gpt_oss", WHOLE, 32),
    "phi3": Case("phi3", WHOLE, 8),
    "int8": Case("llama", {"quantize": {"bits": 8, "group_size": "channel"}, "activations": {}}, 14, 2e-2),
    "half": Case("llama", {"prune": {"sparsity": 0.5}}, 14),
    "2:4": Case("llama", {"prune": {"pattern": "2:4"}}, 14),
    "low rank": Case("llama", {"lowrank": {"ratio": 0.8}}, 14),
}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    write_rounded: Callable[..., Any],
) -> Callable[..., Path]:
    """`folder("gpt2")` → the case's checkpoint; `folder("gpt2", "dense")` → the same weights, decoded."""
    root = tmp_path_factory.mktemp("native")

    def write(label: str, format: str = "native") -> Path:
        out: Path = root / f"{label} {format}"
        if not out.exists():
            case = CASES[label]
            # A dense checkpoint does not say that inputs are rounded.
            left_out = {"activations"} if format == "dense" else set()
            step = {key: value for key, value in case.step.items() if key not in left_out}
            write_rounded(tiny_model(case.family), out, make_recipe(step), format=format)
        return out

    return write


def logits(model: nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits.float()


def packed_modules(model: nn.Module) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.modules())


def from_pretrained(path: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, **{"dtype": torch.float32, **options})


@pytest.mark.parametrize("label", CASES)
def test_both_roads_lead_to_the_decoded_model(
    label: str, folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[label]
    expected = logits(from_pretrained(folder(label, "dense")))
    ours = compress.load(folder(label), dtype=torch.float32)
    theirs, info = from_pretrained(folder(label), output_loading_info=True)
    assert not any(info.values())
    assert packed_modules(ours) == packed_modules(theirs) == case.packed
    assert torch.equal(logits(ours), logits(theirs))
    assert (logits(ours) - expected).norm() < case.tolerance * expected.norm()
    assert not [record.message for record in caplog.records if "decoded" in record.message]
    for model in (ours, theirs) if "embeddings" in case.step.get("targets", []) else ():
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert isinstance(table, PackedEmbedding)
        assert table.prepare() is head.prepare()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("label", ["gpt2", "gpt-oss"])
def test_dtypes_and_device_map(label: str, dtype: torch.dtype, folder: Callable[..., Path]) -> None:
    theirs = from_pretrained(folder(label), dtype=dtype, device_map="auto")
    assert theirs.dtype == dtype
    assert torch.equal(logits(theirs), logits(compress.load(folder(label), dtype=dtype)))
    exact = logits(from_pretrained(folder(label, "dense")))
    assert (logits(theirs) - exact).norm() < 2e-2 * exact.norm()


def test_experts_stay_packed_and_generate(folder: Callable[..., Path]) -> None:
    model = from_pretrained(folder("mixtral"))
    assert sum(isinstance(module, PackedExperts) for module in model.modules()) == 2
    names = {name for name, _ in model.named_parameters()}
    assert not any("experts" in name or "proj.weight" in name for name in names)
    dense = from_pretrained(folder("mixtral", "dense"))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    assert model.generate(TOKENS, **options).shape == dense.generate(TOKENS, **options).shape


def test_the_bare_decoder_has_no_use_for_the_head(folder: Callable[..., Path]) -> None:
    whole = from_pretrained(folder("llama"))
    bare, info = AutoModel.from_pretrained(folder("llama"), dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    with torch.no_grad():
        torch.testing.assert_close(bare(TOKENS).last_hidden_state, whole.model(TOKENS).last_hidden_state)


def test_compiles_as_one_graph(folder: Callable[..., Path]) -> None:
    model = from_pretrained(folder("llama"))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(model))


def test_weights_keep_their_dtype_and_adapters_can_train(folder: Callable[..., Path]) -> None:
    model = from_pretrained(folder("llama"))
    packed = model.model.layers[0].mlp.half().up_proj
    assert packed.weight_scale.dtype == torch.bfloat16
    assert packed.weight.dtype == torch.float16
    assert packed.stand_in is None
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "proj" in name)
    assert model.hf_quantizer.is_trainable is True
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained("nowhere")
    with pytest.raises(UserError, match="format: dense"):
        model.dequantize()


def test_registering_twice_changes_nothing() -> None:
    register()
    register()


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
if sys.argv[2] == "with":
    import compress
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.no_grad():
    torch.save(model(torch.arange(2, 26).view(2, 12) * 7 % 256).logits, sys.argv[3])
"""


@pytest.mark.parametrize("how", ["with", "without"])
def test_a_process_of_its_own(how: str, folder: Callable[..., Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder("gpt2")), how, str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if how == "with":
        assert done.returncode == 0, done.stderr[-2000:]
        found = torch.load(tmp_path / "logits.pt", weights_only=True)
        assert torch.equal(found, logits(compress.load(folder("gpt2"), dtype=torch.float32)))
    else:
        assert done.returncode != 0
        assert "ignore_mismatched_sizes" in done.stderr
        assert not (tmp_path / "logits.pt").exists()


def damaged(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy with the tensors of one shard changed."""
    target.mkdir()
    done = False
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            tensors = load_file(file)
            before = {name: (t.shape, t.dtype) for name, t in tensors.items()}
            if not done and any(name.endswith("weight_packed") for name in before):
                change(tensors)
                done = True
            save_file(tensors, target / file.name, metadata={"format": "pt"})
        elif file.name != "compress.json":  # its sizes would be the first thing that does not fit
            (target / file.name).write_bytes(file.read_bytes())
    assert done
    return target


def first(tensors: dict[str, torch.Tensor], suffix: str = "weight_packed") -> str:
    return next(name for name in tensors if name.endswith(suffix))


def cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors)] = tensors[first(tensors)][:-1].clone()


def retype(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, "weight_scale")
    tensors[name] = tensors[name].double()


def lie(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors, "weight_shape")
    tensors[name] = tensors[name] + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [(cut, "weight_packed of a pack-quantized"), (retype, "float64"), (lie, "weight_shape says")],
)
@pytest.mark.parametrize("read", [from_pretrained, compress.load], ids=["from_pretrained", "load"])
def test_a_damaged_weight_is_named(
    change: Any, words: str, read: Callable[[Path], Any], folder: Callable[..., Path], tmp_path: Path
) -> None:
    path = damaged(folder("llama"), tmp_path / "damaged", change)
    with pytest.raises(UserError, match=words) as caught:
        read(path)
    assert "model.layers." in str(caught.value) or "lm_head" in str(caught.value)


@pytest.mark.parametrize("read", [from_pretrained, compress.load], ids=["from_pretrained", "load"])
def test_a_cut_file_is_refused(
    read: Callable[[Path], Any], folder: Callable[..., Path], tmp_path: Path
) -> None:
    path = damaged(folder("llama"), tmp_path / "cut", lambda tensors: None)
    file = sorted(path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(Exception, match=r"(?i)incomplete|cut off|truncated|ends"):
        read(path)


def test_an_unknown_version_is_refused(folder: Callable[..., Path], tmp_path: Path) -> None:
    path = damaged(folder("llama"), tmp_path / "newer", lambda tensors: None)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["version"] = 99
    (path / "config.json").write_text(json.dumps(config))
    for read in (from_pretrained, compress.load):
        with pytest.raises(UserError, match="native version 99"):
            read(path)


def test_logging_is_ours_to_silence(caplog: pytest.LogCaptureFixture) -> None:
    tell_decoded(["a"], 10)
    assert caplog.records
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="compress"):
        tell_decoded(["a"], 10)
    assert not caplog.records
