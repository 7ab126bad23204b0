"""Importance matrices: written as llama.cpp reads them, and read back."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from compress.checkpoint.gguf import GGUFTensor, Value, lay_out_gguf
from compress.errors import UserError
from compress.formats.gguf.imatrix import Importance, read_imatrix, write_imatrix

gguf = pytest.importorskip("gguf")


def test_an_importance_matrix_comes_back_and_the_package_gguf_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.imatrix"
    tensors = {
        "blk.0.attn_q.weight": Importance(torch.rand(1, 64), torch.tensor([100.0])),
        "blk.0.ffn_up_exps.weight": Importance(torch.rand(3, 64), torch.tensor([4.0, 0.0, 7.0])),
    }
    write_imatrix(path, tensors, dataset="text.txt", chunks=4, chunk_size=25)
    found = read_imatrix(path)
    assert found.keys() == tensors.keys()
    for name, importance in tensors.items():
        assert torch.equal(found[name].sums, importance.sums)
        assert torch.equal(found[name].counts, importance.counts)
    means = found["blk.0.ffn_up_exps.weight"].means
    assert torch.equal(means[1], torch.ones(64))
    torch.testing.assert_close(means[2], tensors["blk.0.ffn_up_exps.weight"].sums[2] / 7)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.chunk_count").contents() == 4
    assert {tensor.name for tensor in reader.tensors} == {
        f"{n}{e}" for n in tensors for e in (".in_sum2", ".counts")
    }


def test_another_gguf_file_is_refused(tmp_path: Path) -> None:
    shard = lay_out_gguf({"general.type": Value("string", "model")}, (GGUFTensor("a", (2,), torch.float32),))
    (tmp_path / "m.gguf").write_bytes(shard.header + bytes(shard.nbytes - len(shard.header)))
    with pytest.raises(UserError, match="no importance matrix"):
        read_imatrix(tmp_path / "m.gguf")


def older(path: Path, entries: dict[str, tuple[int, list[float]]]) -> Path:
    """The form before GGUF, as llama.cpp wrote it."""
    data = struct.pack("<i", len(entries))
    for name, (count, values) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", count, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    path.write_bytes(data + struct.pack("<i", 7) + struct.pack("<i", 4) + b"text")
    return path


def test_the_older_form_is_read(tmp_path: Path) -> None:
    entries = {
        "blk.0.attn_q.weight": (2, [2.0, 4.0, 6.0, 8.0]),
        "blk.0.ffn_up_exps.weight": (4, [4.0] * 4 + [8.0] * 4),
        "blk.0.ffn_up_shexp.weight": (0, [0.0] * 4),
    }
    found = read_imatrix(older(tmp_path / "imatrix.dat", entries))
    assert torch.equal(found["blk.0.attn_q.weight"].of_width(4), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert torch.equal(found["blk.0.ffn_up_exps.weight"].of_width(4), torch.tensor([[1.0] * 4, [2.0] * 4]))
    assert torch.equal(found["blk.0.ffn_up_shexp.weight"].of_width(4), torch.ones(1, 4))
    assert found["blk.0.attn_q.weight"].of_width(3) is None
    assert Importance(torch.ones(2, 6), torch.ones(2)).of_width(4) is None


@pytest.mark.parametrize("cut", [2, 9, 30, 45])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = older(tmp_path / "imatrix.dat", {"blk.0.attn_q.weight": (2, [2.0, 4.0, 6.0, 8.0])})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"imatrix\.dat"):
        read_imatrix(path)
    write_imatrix(
        path, {"a.weight": Importance(torch.ones(1, 64), torch.ones(1))}, dataset="t", chunks=1, chunk_size=1
    )
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"imatrix\.dat"):
        read_imatrix(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent cannot be read"):
        read_imatrix(tmp_path / "absent")
