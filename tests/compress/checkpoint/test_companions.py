"""Files beside the weights: what goes with the model, what is left out with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.checkpoint.companions import companions, left_out_note

CARRIED = [
    "tokenizer.json",
    "tokenizer.model",
    "chat_template.jinja",
    "LICENSE",
    "README.md",
    "modeling_own.py",
    "additional_chat_templates/tool.jinja",
    "assets/picture.png",
]
LEFT_OUT = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "model-00001-of-00002.safetensors",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.00.pth",
    "original/params.json",
    "original/tokenizer.model",
    "onnx/model.onnx_data",
    "decoder.onnx.data",
    "openvino/openvino_model.xml",
    "OpenVINO/openvino_tokenizer.xml",
    "model-Q4_K_M.GGUF",
    "flax_model.msgpack",
    "vision/model.safetensors",
]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def sorted_names(folder: Path, weights: list[str]) -> tuple[list[str], list[str]]:
    found = companions(folder, folder.resolve(), [folder / name for name in weights])
    return (
        sorted(str(file.relative_to(folder)) for file in found.carried),
        sorted(str(file.relative_to(folder)) for file in found.left_out),
    )


def test_what_goes_with_the_model_and_what_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    touch(folder, "model.safetensors", "config.json", "model.safetensors.index.json", *CARRIED, *LEFT_OUT)
    touch(folder, ".cache/huggingface/x.json", ".gitattributes")
    (tmp_path / "secret").write_text("x")
    (folder / "link.txt").symlink_to(tmp_path / "secret")
    assert sorted_names(folder, ["model.safetensors"]) == (sorted(CARRIED), sorted(LEFT_OUT))


def test_modules_after_the_model_are_carried_with_their_weights(tmp_path: Path) -> None:
    modules = [{"path": "", "type": "Transformer"}, {"path": "2_Dense", "type": "Dense"}]
    touch(
        tmp_path,
        "model.safetensors",
        "2_Dense/model.safetensors",
        "2_Dense/config.json",
        "3_Other/model.safetensors",
    )
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    carried, left_out = sorted_names(tmp_path, ["model.safetensors"])
    assert carried == ["2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"]
    assert left_out == ["3_Other/model.safetensors"]


@pytest.mark.parametrize("content", ["[", "{}", "3", '[{"name": "x"}]', "null", "[" * 100_000])
def test_damaged_modules_name_no_folder(tmp_path: Path, content: str) -> None:
    touch(tmp_path, "model.safetensors", "2_Dense/model.safetensors")
    (tmp_path / "modules.json").write_text(content)
    assert sorted_names(tmp_path, ["model.safetensors"])[1] == ["2_Dense/model.safetensors"]


@pytest.mark.parametrize(("name", "left"), [("weights.dat", True), ("vocabulary.json", False)])
def test_a_large_file_of_no_known_kind_counts_as_weights(tmp_path: Path, name: str, left: bool) -> None:
    touch(tmp_path, "model.safetensors", name)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(1 << 27)
    assert (name in sorted_names(tmp_path, ["model.safetensors"])[1]) is left


def test_the_sentence_names_three_and_the_size(tmp_path: Path) -> None:
    assert left_out_note(tmp_path, []) == ""
    names = ["a.bin", "b.bin", "c.bin", "d.bin", "e.bin"]
    touch(tmp_path, *names)
    (tmp_path / "a.bin").write_bytes(bytes(2_000_000))
    note = left_out_note(tmp_path, [tmp_path / name for name in names])
    assert "a.bin, b.bin, c.bin and 2 more (2.0 MB)" in note
