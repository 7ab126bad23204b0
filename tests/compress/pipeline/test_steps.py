"""The whole road, on tiny models of every family: what comes out is complete, loads, and can be continued."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.errors import DamagedSourceError, UserError

FAMILIES = (
    "llama",
    "llama_tied",
    "qwen3",
    "mistral",
    "gemma3",
    "phi3",
    "gpt2",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
)
NATIVE = {"gpt2", "gpt_oss"}
SMALL = {"samples": 4, "length": 32, "settings": {"quantize.group_size": 32}}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and adds first to second.\n" * 40)
    return str(path)


def run(source: Path, out: Path, text: str, recipe: str = "w4-gptq", **options: Any) -> compress.api.Result:
    return compress.compress(source, recipe, out, data=text, **{**SMALL, **options})


def hashes(folder: Path) -> dict[str, str]:
    """File → hash, of all files whose bytes may not depend on time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in {"compress.json", "report.html", "README.md"}  # the card names the folder
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_compressed_saved_and_loaded(
    family: str, tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    source = tiny_model(family)
    result = run(source, tmp_path / "out", text)
    report = result.report
    assert report.format.name == ("native" if family in NATIVE else "compressed-tensors")
    assert report.bytes.actual == report.bytes.planned == result.plan.total_bytes
    on_disk = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert on_disk == result.plan.total_bytes
    weights = sum(weight.shape[0] * weight.shape[1] for weight in report.weights)
    dense = compress.load(source)
    blocks = sum(p.numel() for n, p in dense.named_parameters() if ".layers." in n or ".h." in n)
    assert weights >= 0.95 * blocks
    assert all(weight.error is not None and weight.error < 0.1 for weight in report.weights)
    tokens = torch.arange(16).unsqueeze(0)
    logits, expected = (compress.load(path)(tokens).logits.float() for path in (tmp_path / "out", source))
    assert torch.isfinite(logits).all()
    assert (logits - expected).norm() < 0.7 * expected.norm()


@pytest.mark.parametrize("recipe", ["w8", "w4-rtn", "w3-gptq", "w2-gptq"])
def test_recipes_order_by_size_and_pass_verification(
    recipe: str, tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    settings = {} if recipe == "w8" else SMALL["settings"]
    result = run(tiny_model("llama"), tmp_path / "out", text, recipe, settings=settings)
    bits = {"w8": 8, "w4-rtn": 4, "w3-gptq": 3, "w2-gptq": 2}[recipe]
    assert bits < result.report.bits_per_weight < bits + 1.5
    checked = compress.verify(tmp_path / "out", tiny_model("llama"))
    assert checked.packed == len(result.report.weights)


def test_the_same_command_gives_the_same_bytes(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        run(tiny_model("mixtral"), out, text)
    assert hashes(first) == hashes(second)
    run(tiny_model("mixtral"), second, text, seed=1, overwrite=True)
    assert hashes(first) != hashes(second)


def test_sequential_order_sees_the_compressed_inputs(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    settings = {**SMALL["settings"], "true_sequential": True}
    run(tiny_model("llama"), tmp_path / "sequential", text, settings=settings)
    run(tiny_model("llama"), tmp_path / "parallel", text)
    assert hashes(tmp_path / "sequential") != hashes(tmp_path / "parallel")


def test_dense_format_has_the_source_s_names_and_the_packed_values(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    source = tiny_model("gpt_oss")
    for form in ("dense", "native"):
        run(source, tmp_path / form, text, format=form)
    dense, original = load_file(tmp_path / "dense/model.safetensors"), load_file(source / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in dense.items()} == {
        n: (t.shape, t.dtype) for n, t in original.items()
    }
    tokens = torch.arange(16).unsqueeze(0)
    logits = [compress.load(tmp_path / form)(tokens).logits for form in ("dense", "native")]
    assert torch.allclose(*logits, atol=0.05)


def test_a_weight_s_own_options_and_the_head(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    recipe = compress.Recipe.parse(
        {
            "name": "mixed",
            "steps": [
                {"targets": ["linear"], "quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"},
                {"targets": ["lm_head"], "quantize": {"bits": 8, "group_size": "channel"}},
                {"targets": ["re:.*down_proj"], "quantize": {"bits": 8, "group_size": 32}},
            ],
        }
    )
    result = compress.compress(tiny_model("llama"), recipe, tmp_path / "out", data=text, samples=4, length=32)
    found = {weight.name: weight.structure for weight in result.report.weights}
    assert found["lm_head"] == "int8 per channel"
    assert found["model.layers.1.mlp.down_proj"] == "int8 group 32"
    assert found["model.layers.1.mlp.up_proj"] == "int4 group 32"


def _die_at(moment: int, source: Path, out: Path, text: str) -> None:
    """Compress, and be killed at the given write."""
    original, calls = os.pwrite, 0

    def counting(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    os.pwrite = counting  # type: ignore[assignment]  # only in this process, which ends here
    torch.set_num_threads(1)
    run(source, out, text)


def _in_child(target: Callable[..., None], *arguments: Any) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def test_killed_at_ten_moments_and_continued(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    source = tiny_model("llama", num_hidden_layers=4)
    run(source, tmp_path / "unbroken", text)
    expected = hashes(tmp_path / "unbroken")
    writes = 3 * 7 * 4
    for moment in range(2, writes, writes // 10):
        out = tmp_path / f"killed-{moment}"
        assert _in_child(_die_at, moment, source, out, text) == -signal.SIGKILL
        assert not out.exists()
        assert not (out.with_name(out.name + ".partial") / "config.json").exists()
        run(source, out, text)
        assert hashes(out) == expected
        shutil.rmtree(out)


def _with_little_disk(source: Path, out: Path, text: str, told: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))
    try:
        run(source, out, text)
    except UserError as error:
        told.write_text(str(error))


def test_a_full_disk_is_one_sentence(tiny_model: Callable[..., Path], tmp_path: Path, text: str) -> None:
    _in_child(_with_little_disk, tiny_model("llama"), tmp_path / "out", text, tmp_path / "told")
    sentence = (tmp_path / "told").read_text()
    assert "full" in sentence or "large" in sentence
    assert "\n" not in sentence
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def copied(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


def _spoil_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _spoil_cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _spoil_quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def _spoil_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _spoil_remote(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nan": (_spoil_nan, "model.layers.1.mlp.up_proj"),
    "truncated": (_spoil_cut, "model.safetensors"),
    "quantized": (_spoil_quantized, "no tensor is stored that way"),
    "tokenizer": (_spoil_tokenizer, "tokenizer"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "model"),
    "remote code": (_spoil_remote, "trust"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_bad_source_is_refused_in_one_sentence(name: str, copied: Path, tmp_path: Path, text: str) -> None:
    spoil, word = SPOILED[name]
    spoil(copied)
    before = hashes(copied)
    with pytest.raises(UserError) as error:
        run(copied, tmp_path / "out", text)
    assert word in str(error.value)
    assert "\n" not in str(error.value)
    # Not even a block that was finished before the damage was found: no run can go on from it.
    assert not list(tmp_path.glob("out*"))
    assert hashes(copied) == before


@pytest.mark.parametrize("recipe", ["w4-gptq", "sparse50-awp"])
def test_a_mended_source_is_compressed_by_the_same_command(
    recipe: str, tiny_model: Callable[..., Path], copied: Path, tmp_path: Path, text: str
) -> None:
    """No run over the damaged source can be continued, so it leaves nothing that has to be discarded."""
    settings = {"quantize.group_size": 32} if recipe == "w4-gptq" else {"solver": {"name": "awp", "steps": 2}}
    options = {"recipe": recipe, "settings": settings, "samples": 2, "length": 16}
    _spoil_nan(copied)
    with pytest.raises(DamagedSourceError, match="up_proj"):
        run(copied, tmp_path / "out", text, **options)
    assert not list(tmp_path.glob("out*"))
    shutil.copyfile(tiny_model("llama") / "model.safetensors", copied / "model.safetensors")
    run(copied, tmp_path / "out", text, **options)
    run(tiny_model("llama"), tmp_path / "never damaged", text, **options)
    assert {k: v for k, v in hashes(tmp_path / "out").items() if k.endswith("safetensors")} == {
        k: v for k, v in hashes(tmp_path / "never damaged").items() if k.endswith("safetensors")
    }


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt key": ({"settings": {"quantize.grop": 32}}, "did you mean 'group_size'"),
    "misspelt step": ({"settings": {"quantise.bits": 4}}, "did you mean 'quantize'"),
    "group": ({"settings": {"quantize.group_size": 48}}, "48"),
    "no match": ({"settings": {"targets": ["model.layers.9.mlp.up_proj"]}}, "matches no weight"),
    "recipe": ({"recipe": "w4-gtpq"}, "did you mean 'w4-gptq'"),
    "solver": ({"settings": {"solver": "gtpq"}}, "did you mean 'gptq'"),
    "option": ({"settings": {"solver": {"name": "gptq", "dampening": 1}}}, "did you mean 'damping'"),
    "embeddings with data": (
        {"settings": {"quantize.group_size": 32, "targets": ["linear", "embeddings"]}},
        "only the output head's inputs are observed",
    ),
    "device": ({"device": "abacus"}, "abacus"),
    "format": ({"format": "ggml"}, "ggml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_wish_is_refused_in_one_sentence(
    name: str, tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    options, words = WRONG[name]
    with pytest.raises(UserError) as error:
        run(tiny_model("llama"), tmp_path / "out", text, **options)
    assert words in str(error.value)
    assert not list(tmp_path.glob("out*"))


def test_an_existing_output_is_kept(tiny_model: Callable[..., Path], tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        run(tiny_model("llama"), out, text)
    with pytest.raises(UserError, match="not a checkpoint"):
        run(tiny_model("llama"), out, text, overwrite=True)
    assert (out / "precious").read_text() == "mine"


def _flips(folder: Path) -> Iterator[tuple[str, int]]:
    """A name and the place of one byte of every eighth tensor of a checkpoint."""
    with (folder / "model.safetensors").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, entry in list(header.items())[::8]:
        start, stop = entry["data_offsets"]
        if stop > start:
            yield name, 8 + length + (start + stop) // 2


def test_verify_names_the_tensor_with_a_flipped_byte(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    out = tmp_path / "out"
    run(tiny_model("llama"), out, text)
    path = out / "model.safetensors"
    for name, place in _flips(out):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            compress.verify(out, tiny_model("llama"))
        data[place] ^= 1
        path.write_bytes(data)
    compress.verify(out, tiny_model("llama"))
