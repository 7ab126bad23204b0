"""Importance matrices: written as llama.cpp reads them, and read back."""

from __future__ import annotations

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
