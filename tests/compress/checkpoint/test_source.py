"""Reading checkpoints, and refusing broken ones in one sentence."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.checkpoint.source import Source, check_finite, open_source, sha256_of
from compress.errors import UserError

TinyModel = Callable[..., Path]


@pytest.fixture
def folder(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A checkpoint of its own to break."""
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    return tmp_path / "model"


def shard(folder: Path, count: int = 2) -> dict[str, str]:
    """Splits `model.safetensors` into shards with an index; returns the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = names[number::count]
        save_file({name: tensors[name] for name in part}, folder / file)
        index.update(dict.fromkeys(part, file))
    write_index(folder, index)
    return index


def write_index(folder: Path, index: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_raw(file: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_source(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reads_every_tensor_as_safetensors_does(folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    source = open_source(folder)
    assert set(source.headers) == set(expected)
    for name, tensor in expected.items():
        found = source.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
        assert bytes(source.raw_bytes(name)) == tensor.view(torch.uint8).numpy().tobytes()
        assert source.headers[name].nbytes == tensor.nbytes


def test_reads_shards(folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    shard(folder, 3)
    source = open_source(folder)
    assert len(source.files) == 3
    assert all(torch.equal(source.read(name), tensor) for name, tensor in expected.items())
    assert source.sha256() == {file.name: sha256_of(file) for file in source.files}


def test_reading_changes_nothing(folder: Path) -> None:
    source = open_source(folder)
    name = next(iter(source.headers))
    before, expected = sha256_of(folder / "model.safetensors"), source.read(name).clone()
    source.read(name).zero_()
    source.raw_bytes(name)[:2] = b"xx"
    assert sha256_of(folder / "model.safetensors") == before
    assert torch.equal(source.read(name), expected)


def test_reading_takes_no_memory(folder: Path) -> None:
    size = 1 << 29
    write_raw(
        folder / "model.safetensors",
        {"x": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}},
    )
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate((folder / "model.safetensors").stat().st_size + size)  # half a gigabyte of holes
    process = psutil.Process()
    before = process.memory_info().rss
    tensor = open_source(folder).read("x")
    assert tensor[-1].item() == 0
    assert process.memory_info().rss - before < size // 4


def test_a_file_that_shrinks_under_us(folder: Path) -> None:
    source = open_source(folder)
    last = list(source.headers)[-1]
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="changed"):
        source.read(last)


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(folder: Path, dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    save_file(
        {"x": tensor, "scalar": tensor[0, 1].clone(), "none": tensor[:0].clone()},
        folder / "model.safetensors",
    )
    source = open_source(folder)
    assert source.read("x").dtype == dtype
    assert torch.equal(source.read("x").to(torch.float64), tensor.to(torch.float64))
    assert source.read("scalar").shape == ()
    assert source.read("none").shape == (0, 3)
    assert len(source.raw_bytes("none")) == 0


def test_misaligned_tensors_are_copied(folder: Path) -> None:
    values = torch.arange(6, dtype=torch.float32)
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "values": {"dtype": "F32", "shape": [2, 3], "data_offsets": [1, 25]},
    }
    write_raw(folder / "model.safetensors", header, b"\x07" + values.numpy().tobytes())
    source = open_source(folder)
    assert torch.equal(source.read("values"), values.view(2, 3))
    assert source.read("byte").item() == 7


def test_four_bit_floats(folder: Path) -> None:
    header = {"x": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}
    write_raw(folder / "model.safetensors", header, b"\x01\x02\x03\x04")
    info = open_source(folder).headers["x"]
    assert info.shape == (2, 2)
    assert bytes(open_source(folder).raw_bytes("x")) == b"\x01\x02\x03\x04"


def test_extra_files(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "training_args.bin").write_bytes(b"")
    (folder / "original").mkdir()
    (folder / "original" / "model.pth").write_bytes(b"")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("{}")
    (folder.parent / "secret").write_text("x")
    (folder / "link.txt").symlink_to(folder.parent / "secret")
    names = {str(file.relative_to(folder)) for file in open_source(folder).extra_files()}
    assert names == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "additional_chat_templates/tool.jinja",
    }


def test_no_folder(tmp_path: Path) -> None:
    assert "no folder" in refusal(tmp_path / "nowhere")
    assert "no folder" in refusal("./nowhere")
    assert "no folder" in refusal("")
    assert "hub" in refusal("somebody/nothing-of-the-kind")


def test_a_file_is_no_folder(folder: Path) -> None:
    assert "is a file" in refusal(folder / "config.json")


def test_empty_folder(tmp_path: Path) -> None:
    assert "empty" in refusal(tmp_path)


def test_only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert ".bin" in message
    assert "save_pretrained" in message


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder)


@pytest.mark.parametrize("content", [None, "{", "[]", "\udcff"])
def test_config_missing_or_broken(folder: Path, content: str | None) -> None:
    config = folder / "config.json"
    config.unlink()
    if content is not None:
        config.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1, -1000])
def test_truncated(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(folder)
    assert "corrupt or truncated" in message
    assert "model.safetensors" in message


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{", b"", "JSON"),
        (b"\xff\xfe", b"", "JSON"),
        (b"[1]", b"", "JSON object"),
        (b'{"x": 1, "x": 2}', b"", "twice"),
        ({"x": 1}, b"", "malformed"),
        ({"x": {"dtype": "U8", "shape": [1]}}, b"\0", "malformed"),
        ({"x": entry(0, 1, [-1])}, b"\0", "malformed"),
        ({"x": entry(0, 1, ["1"])}, b"\0", "malformed"),
        ({"x": entry(0, 3, [2])}, b"\0" * 3, "needs 2 bytes"),
        ({"x": entry(0, 9)}, b"\0" * 8, "ends at byte"),
        ({"x": entry(0, 2), "y": entry(4, 6)}, b"\0" * 6, "hole"),
        ({"x": entry(1, 2)}, b"\0" * 2, "hole"),
        ({"x": entry(0, 4), "y": entry(2, 6)}, b"\0" * 6, "overlaps"),
        ({"x": entry(0, 2)}, b"\0" * 6, "belong to no tensor"),
        ({"x": entry(0, 2, dtype="U9")}, b"\0" * 2, "U9"),
    ],
)
def test_malformed_header(folder: Path, header: Any, data: bytes, words: str) -> None:
    write_raw(folder / "model.safetensors", header, data)
    assert words in refusal(folder)


@pytest.mark.parametrize("length", [2**63, 100_000_001, 10_000])
def test_header_longer_than_the_file(folder: Path, length: int) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    assert "header" in refusal(folder)


def test_index_names_a_missing_file(folder: Path) -> None:
    index = shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "missing" in refusal(folder)
    assert index


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "sub/../../other.safetensors", "ABSOLUTE", "..\\other"]
)
def test_index_leads_outside(folder: Path, name: str) -> None:
    index = shard(folder)
    outside = folder.parent / "other.safetensors"
    save_file({"x": torch.zeros(1)}, outside)
    write_index(folder, {**index, "x": str(outside) if name == "ABSOLUTE" else name})
    assert "outside" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_that_leave_the_folder(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    assert "outside" in refusal(folder)


def test_links_within_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "real.safetensors")
    (folder / "model.safetensors").symlink_to("real.safetensors")
    assert open_source(folder).headers


def test_links_of_the_hubs_cache(folder: Path) -> None:
    cached = folder.parent / "models--somebody--tiny"
    (cached / "blobs").mkdir(parents=True)
    snapshot = cached / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copy(file, cached / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    source = open_source(snapshot)
    assert source.headers
    assert "tokenizer.json" in {file.name for file in source.extra_files()}


def test_index_and_shards_disagree(folder: Path) -> None:
    index = shard(folder)
    write_index(folder, {**index, "model.missing.weight": "model-00001-of-00002.safetensors"})
    assert "model.missing.weight" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": [1]}', '{"weight_map": {"x": 1}}'])
def test_malformed_index(folder: Path, content: str) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    assert "index.json" in refusal(folder)


def test_one_tensor_in_two_shards(folder: Path) -> None:
    index = shard(folder)
    twice = load_file(folder / "model-00001-of-00002.safetensors")
    second = folder / "model-00002-of-00002.safetensors"
    save_file({**load_file(second), **dict([next(iter(twice.items()))])}, second)
    assert "both" in refusal(folder)
    assert index


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_check_finite(dtype: torch.dtype, value: float) -> None:
    tensor = torch.zeros(3, 5)
    check_finite(tensor.to(dtype), "fine")
    tensor[2, 4] = value
    with pytest.raises(UserError, match="here"):
        check_finite(tensor.to(dtype), "here")
    check_finite(torch.zeros(3, dtype=torch.int64), "integers")


def test_unknown_tensor(folder: Path) -> None:
    with pytest.raises(UserError, match="no tensor"):
        open_source(folder).read("nothing")


def test_source_is_a_class_method_too(folder: Path) -> None:
    assert isinstance(Source.open_source(folder), Source)


def test_what_is_read_of_the_files(folder: Path) -> None:
    source = open_source(folder)
    name = next(iter(source.headers))
    info = source.headers[name]
    assert source.on_disk(name) == (info,)
    part = replace(info, offset=info.offset + 1)
    decoded = replace(info, decode=lambda: torch.zeros(1), parts=(part,))
    assert replace(source, headers={name: decoded}).on_disk(name) == (part,)
