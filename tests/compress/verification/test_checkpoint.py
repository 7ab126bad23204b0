"""Verify names the first thing that is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.headers import read_header
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.verification.checkpoint import verify

STEP = {"quantize": {"bits": 4, "group_size": 16}}


@dataclass(frozen=True)
class Pair:
    """A source and what was made of it."""

    source: Path
    out: Path


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    write_rounded: Callable[..., Any],
) -> Pair:
    folder = tmp_path_factory.mktemp("verify")
    source = Path(shutil.copytree(tiny_model("llama"), folder / "source"))
    write_rounded(source, folder / "out", make_recipe(STEP), max_shard_size=50_000)
    return Pair(source, folder / "out")


@pytest.fixture
def pair(written: Pair, tmp_path: Path) -> Pair:
    """Copies that a test may spoil."""
    return Pair(
        Path(shutil.copytree(written.source, tmp_path / "source")),
        Path(shutil.copytree(written.out, tmp_path / "out")),
    )


def _flip(folder: Path, tensor: str, byte: int = 0) -> None:
    infos = [
        info
        for file in folder.glob("*.safetensors")
        for name, info in read_header(file).items()
        if name == tensor
    ]
    with infos[0].file.open("r+b") as file:
        file.seek(infos[0].offset + byte)
        old = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([old[0] ^ 1]))


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_good_output_passes(written: Pair) -> None:
    seen: list[int] = []
    report = verify(written.out, written.source, progress=seen.append)
    assert report.packed == 14
    assert report.tensors == 14 * 3 + report.passed_through
    assert report.nbytes == sum(path.stat().st_size for path in written.out.glob("*.safetensors"))
    assert sum(seen) == report.nbytes - sum(
        8 + int.from_bytes(path.read_bytes()[:8], "little") for path in written.out.glob("*.safetensors")
    )
    assert report.files >= 2


@pytest.mark.parametrize(
    "tensor",
    [
        "model.layers.1.mlp.up_proj.weight_packed",
        "model.layers.0.self_attn.k_proj.weight_scale",
        "model.norm.weight",
        "model.embed_tokens.weight",
    ],
)
def test_one_flipped_byte_names_its_tensor(tensor: str, pair: Pair) -> None:
    _flip(pair.out, tensor, byte=5)
    with pytest.raises(UserError, match=tensor):
        verify(pair.out, pair.source)


def test_a_source_that_changed_since_is_found(pair: Pair) -> None:
    _flip(pair.source, "lm_head.weight")
    with pytest.raises(UserError, match=r"lm_head\.weight is not what it is in the source"):
        verify(pair.out, pair.source)


def test_a_header_that_swaps_two_tensors_is_found(pair: Pair) -> None:
    file = next(path for path in pair.out.glob("*.safetensors") if b"up_proj" in path.read_bytes())
    data = file.read_bytes()
    file.write_bytes(data.replace(b"mlp.up_proj.weight_packed", b"mlp.UP_proj.weight_packed", 1))
    with pytest.raises(UserError, match="header was changed"):
        verify(pair.out, pair.source)


def test_a_file_written_by_another_program_is_found(pair: Pair) -> None:
    file = sorted(pair.out.glob("*.safetensors"))[0]
    tensors = load_file(file)
    tensors["more"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(UserError, match="bytes, not"):
        verify(pair.out, pair.source)


def _cut(pair: Pair) -> None:
    file = sorted(pair.out.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-1])


def _lose_shard(pair: Pair) -> None:
    sorted(pair.out.glob("*.safetensors"))[-1].unlink()


def _add_shard(pair: Pair) -> None:
    save_file({"x": torch.zeros(2)}, pair.out / "stranger.safetensors")


def _misplace(pair: Pair) -> None:
    _edit(
        pair.out / "model.safetensors.index.json", lambda index: index["weight_map"].pop("model.norm.weight")
    )


def _other_rope(pair: Pair) -> None:
    _edit(pair.out / "config.json", lambda config: config.update(hidden_act="relu"))


def _other_bits(pair: Pair) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 8

    _edit(pair.out / "config.json", change)


def _other_recipe(pair: Pair) -> None:
    def change(report: dict[str, Any]) -> None:
        report["plan"]["recipe"]["steps"][0]["quantize"]["bits"] = 3

    _edit(pair.out / "compress.json", change)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_cut, "it is cut off or changed"),
        (_lose_shard, r"lacks model-0000\d-of-0000\d\.safetensors"),
        (_add_shard, r"holds stranger\.safetensors"),
        (_misplace, "does not say where the tensors are"),
        (_other_rope, '\'hidden_act\' is "relu", expected "silu"'),
        (_other_bits, "'quantization_config' is"),
        (_other_recipe, "is not stored as the recipe says"),
        (lambda pair: (pair.out / "tokenizer.json").unlink(), r"lacks tokenizer\.json"),
        (
            lambda pair: (pair.out / "tokenizer.json").write_text("{}"),
            r"differs from the source's tokenizer\.json",
        ),
        (lambda pair: (pair.out / "config.json").unlink(), r"has no config\.json"),
        (lambda pair: (pair.out / "config.json").write_text("{"), "is not JSON"),
        (lambda pair: (pair.out / "compress.json").unlink(), r"has no compress\.json"),
        (lambda pair: (pair.out / "compress.json").write_text("{}"), "is incomplete"),
    ],
)
def test_it_says_what_is_wrong(spoil: Callable[[Pair], object], sentence: str, pair: Pair) -> None:
    spoil(pair)
    with pytest.raises(UserError, match=sentence) as caught:
        verify(pair.out, pair.source)
    assert "\n" not in str(caught.value)


def test_another_source_is_refused(written: Pair, tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(UserError):
        verify(written.out, tiny_model("llama", num_hidden_layers=3))


def test_values_that_are_not_finite_are_found(pair: Pair) -> None:
    name = "model.layers.0.mlp.down_proj.weight_scale"
    info = next(
        infos[name] for file in pair.out.glob("*.safetensors") if name in (infos := read_header(file))
    )
    data = bytearray(info.file.read_bytes())
    data[info.offset : info.offset + 2] = b"\x80\x7f"  # infinity in bf16
    info.file.write_bytes(data)
    digest = hashlib.sha256(data[info.offset : info.offset + info.nbytes]).hexdigest()
    _edit(pair.out / "compress.json", lambda report: report["tensors"].update({name: digest}))
    with pytest.raises(UserError, match=f"{name} holds NaN or infinite values"):
        verify(pair.out, pair.source)


def test_further_checks_come_last(written: Pair) -> None:
    def refuse(folder: Path, source: Source) -> None:
        raise UserError(f"{folder.name} and {source.path.name}")

    with pytest.raises(UserError, match="out and source"):
        verify(written.out, written.source, checks=[refuse])


@pytest.mark.parametrize(
    ("family", "format"),
    [("gpt_oss", "auto"), ("gpt_oss", "dense"), ("gpt2", "dense"), ("llama_tied", "auto")],
)
def test_every_form_is_verified(
    family: str,
    format: str,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    write_rounded: Callable[..., Any],
    tmp_path: Path,
) -> None:
    out = write_rounded(tiny_model(family), tmp_path / "out", make_recipe(STEP), format=format).out
    assert verify(out, tiny_model(family)).packed > 0
