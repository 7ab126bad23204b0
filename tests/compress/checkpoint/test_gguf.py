"""GGUF files: laid out as the package `gguf` reads them, and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.checkpoint.gguf import ALIGNMENT, GGUFTensor, Value, lay_out_gguf, read_gguf_header
from compress.checkpoint.shards import Shard
from compress.checkpoint.tensor_edits import Edit
from compress.errors import UserError

gguf = pytest.importorskip("gguf")

METADATA = {
    "general.architecture": Value("string", "llama"),
    "llama.block_count": Value("u32", 2),
    "llama.rope.freq_base": Value("f32", 10000.0),
    "tokenizer.ggml.add_bos_token": Value("bool", True),
    "tokenizer.ggml.tokens": Value("string", ["a", "ü", "<s>"], array=True),
    "tokenizer.ggml.token_type": Value("i32", [1, 1, 3], array=True),
}
TENSORS = (
    GGUFTensor("norm", (5,), torch.float32),
    GGUFTensor("dense", (3, 7), torch.bfloat16),
    GGUFTensor("packed", (2, 256), "q4_k"),
    GGUFTensor("stack", (4, 2, 32), "q8_0"),
)


def write(path: Path, shard: Shard, fill: int = 7) -> None:
    data = bytearray(shard.nbytes)
    data[: len(shard.header)] = shard.header
    for slot in shard.slots:
        data[slot.offset : slot.offset + slot.nbytes] = bytes([fill]) * slot.nbytes
    path.write_bytes(data)


def test_the_package_gguf_reads_what_was_laid_out(tmp_path: Path) -> None:
    shard = lay_out_gguf(METADATA, TENSORS)
    write(tmp_path / "a.gguf", shard)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    for key, value in METADATA.items():
        assert reader.get_field(key).contents() == value.value
    for tensor, found, slot in zip(TENSORS, reader.tensors, shard.slots, strict=True):
        assert found.name == tensor.name
        assert found.tensor_type.value == tensor.code
        assert tuple(int(n) for n in found.shape) == tensor.shape[::-1]
        assert found.data_offset == slot.offset
        assert slot.offset % ALIGNMENT == 0
        assert found.n_bytes == slot.nbytes
        assert bool((np.asarray(found.data).view(np.uint8) == 7).all())


def test_the_header_comes_back(tmp_path: Path) -> None:
    shard = lay_out_gguf(METADATA, TENSORS)
    write(tmp_path / "a.gguf", shard)
    header = read_gguf_header(tmp_path / "a.gguf")
    assert header.metadata == METADATA
    assert header.tensors == TENSORS
    assert header.offsets == {slot.name: slot.offset for slot in shard.slots}


def test_a_cut_or_strange_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    shard = lay_out_gguf(METADATA, TENSORS)
    path = tmp_path / "a.gguf"
    write(path, shard)
    whole = path.read_bytes()
    for length, words in (
        (len(whole) - 200, "cut off"),
        (60, "corrupt or truncated"),
        (3, "not a GGUF file"),
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=words):
            read_gguf_header(path)
    path.write_bytes(whole[:4] + (2).to_bytes(4, "little") + whole[8:])
    with pytest.raises(UserError, match="version 2"):
        read_gguf_header(path)


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="share one name"):
        lay_out_gguf(METADATA, (TENSORS[0], TENSORS[0]))


@pytest.mark.parametrize(
    "edit",
    [
        Edit(),
        Edit("rope", (3,)),
        Edit("qkv_by_head", (4,)),
        Edit("qkv_by_group", (2, 4)),
        Edit(add=1.0),
        Edit("rope", (6,), 0.5),
    ],
)
def test_an_edit_is_undone(edit: Edit) -> None:
    torch.manual_seed(0)
    weight = torch.randint(0, 99, (24, 5)).float()
    there = edit.to_gguf(weight)
    assert torch.equal(edit.from_gguf(there), weight)
    assert (edit == Edit()) == torch.equal(there, weight)
    assert Edit.from_json(edit.to_json()) == edit


def test_the_rope_order_is_the_one_of_llama_cpps_converter() -> None:
    weight = torch.arange(24).view(24, 1)
    expected = weight.reshape(3, 2, 4, 1).swapaxes(1, 2).reshape(24, 1)
    assert torch.equal(Edit("rope", (3,)).to_gguf(weight), expected)
