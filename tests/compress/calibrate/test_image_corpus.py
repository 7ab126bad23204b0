"""Calibration with images: windows of conversations, and blocks that see what the model makes of the images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.zoo.vision_language import IMAGE, build_vision_language
from compress import api
from compress.calibrate import image_corpus
from compress.calibrate.image_corpus import image_bytes, load_image_corpus, load_processor, names_images
from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.text.images import has_images, images_of
from compress.text.records import Messages, documents_of

PIECES = 16
"""Tokens of an image of 32 × 32 in patches of 8."""


class Processor:
    """What processors do, without Pillow: bytes for letters, `PIECES` tokens and random pixels for an image."""

    def apply_chat_template(self, messages: list[dict[str, Any]], tokenize: bool) -> str:
        assert not tokenize
        parts = [part for message in messages for part in message["content"]]
        return "".join("\0" if part["type"] == "image" else part["text"] for part in parts)

    def __call__(self, text: list[str], images: list[str], return_tensors: str) -> dict[str, Tensor]:
        assert return_tensors == "pt"
        ids: list[int] = []
        for letter in text[0]:
            ids += [IMAGE] * PIECES if letter == "\0" else [2 + ord(letter) % 240]
        generator = torch.Generator().manual_seed(sum(map(ord, "".join(images))))
        found = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
            "pixel_values": torch.randn(len(images), 3, 32, 32, generator=generator),
            "mm_token_type_ids": (torch.tensor([ids]) == IMAGE).long(),
        }
        return found


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of conversations with images in three forms; images are opened by their names."""
    rows = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}],
                }
            ]
        },
        {
            "images": ["b.png", "c.png"],
            "conversations": [{"from": "human", "value": "<image>\n<image>\nBoth?"}],
        },
        {"image": "d.png", "text": "A cat on a mat."},
        {"text": "No picture here."},
    ]
    path = tmp_path / "images.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))

    def names(document: Messages, folder: Path) -> list[str]:
        assert folder == tmp_path
        return [part["image"] for m in document.messages for part in m["content"] if part["type"] == "image"]

    monkeypatch.setattr(image_corpus, "images_of", names)
    return path


def corpus(data: Path, samples: int = 4, length: int = 64, seed: int = 0) -> Any:
    filler = torch.full((samples, length), 7)
    return load_image_corpus(str(data), Processor(), filler, samples=samples, length=length, seed=seed)


def test_windows_of_conversations_and_text(data: Path) -> None:
    found = corpus(data)
    assert found.tokens.shape == (4, 64)
    assert found.images is not None
    for tokens, inputs in zip(found.tokens, found.images, strict=True):
        count = int((tokens == IMAGE).sum())
        assert count == PIECES * len(inputs["pixel_values"])
        assert torch.equal(inputs["mm_token_type_ids"][0], (tokens == IMAGE).long())
        assert "attention_mask" not in inputs
        assert int(tokens[-1]) == 7
    assert torch.equal(found.tokens, corpus(data).tokens)
    assert not torch.equal(found.tokens, corpus(data, seed=1).tokens)
    assert "3 conversations" in found.note
    assert image_bytes(found.images) != image_bytes(found.images[::-1])


def test_conversations_that_are_too_long(data: Path) -> None:
    found = corpus(data, length=32)
    assert "1 are longer than 32 tokens" in found.note
    with pytest.raises(UserError, match="larger --length"):
        corpus(data, length=8)


def test_which_files_name_images(data: Path, tmp_path: Path) -> None:
    assert names_images(str(data))
    (tmp_path / "plain.jsonl").write_text('{"text": "a"}\n')
    assert not names_images(str(tmp_path / "plain.jsonl"))
    assert not names_images("embedded")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "a", "image": "x.png"}, [("user", ["image", "a"])]),
        (
            {
                "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "r"}],
                "images": ["x.png"],
            },
            [("user", ["image", "q"]), ("assistant", ["r"])],
        ),
        ({"text": "a", "image": []}, None),
    ],
    ids=["text", "llava", "none"],
)
def test_records_with_images(record: dict[str, Any], expected: Any) -> None:
    (document,) = documents_of(record, "here")
    assert has_images(document) == (expected is not None)
    if expected is not None:
        assert isinstance(document, Messages)
        found = [
            (m["role"], [part["text"] if part["type"] == "text" else "image" for part in m["content"]])
            for m in document.messages
        ]
        assert found == expected


def test_what_is_wrong_with_images_is_said(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="must be paths"):
        list(documents_of({"text": "a", "images": [3]}, "here"))
    (document,) = documents_of({"text": "a", "image": "missing.png"}, "here")
    assert isinstance(document, Messages)
    with pytest.raises(UserError, match=r"missing\.png|Pillow"):
        images_of(document, tmp_path)
    with pytest.raises(UserError, match="no processor that loads here"):
        load_processor(tmp_path)
    path = tmp_path / "images.jsonl"
    path.write_text('{"text": "a", "image": "x.png"}\n')
    with pytest.raises(UserError, match="does not take"):
        api.compress(
            tiny_model("llama"),
            "w4-gptq",
            tmp_path / "out",
            data=str(path),
            device="cpu",
            settings={"quantize.group_size": 32},
        )


@pytest.fixture
def llava(tmp_path: Path, tiny_model: Callable[..., Path]) -> Path:
    folder = tmp_path / "llava"
    build_vision_language("llava").save_pretrained(folder)
    for file in tiny_model("llama").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_blocks_see_the_images(llava: Path, data: Path) -> None:
    """The hidden states are those of the whole model run on text and images."""
    found = corpus(data, samples=3)
    assert found.images is not None
    skeleton = open_skeleton(open_source(llava))
    expected = []
    with torch.no_grad():
        whole = build_vision_language("llava").model
        for tokens, inputs in zip(found.tokens, found.images, strict=True):
            output = whole(
                input_ids=tokens[None], pixel_values=inputs["pixel_values"], output_hidden_states=True
            )
            expected.append(output.hidden_states[1])
    with BlockStream(skeleton, found.tokens, dtype=torch.float32, images=found.images) as stream:
        stream.prepare()
        assert stream.batches == 3
        skeleton.load_block(0, device="cpu", dtype=torch.float32)
        torch.testing.assert_close(torch.cat(list(stream.run(0))), torch.cat(expected))


def test_a_run_with_images(llava: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.pipeline.calibration.load_processor", lambda *_, **__: Processor())
    options: dict[str, Any] = {"samples": 3, "length": 64, "device": "cpu", "data": str(data)}
    settings = {"quantize.group_size": 32}
    result = api.compress(llava, "w4-gptq", tmp_path / "out", settings=settings, **options)
    assert any("3 conversations with images" in note for note in result.report.notes)
    text = api.compress(
        llava, "w4-gptq", tmp_path / "text", settings=settings, **{**options, "data": "embedded"}
    )
    assert result.report.tensors != text.report.tensors
    with pytest.raises(UserError, match="on text alone"):
        api.compress(llava, "best-w4", tmp_path / "best", settings=settings, **options)


def test_features_that_enter_behind_a_block(tmp_path: Path) -> None:
    """Qwen3-VL adds features of the image to the hidden states behind its first blocks, too."""
    model = build_vision_language("qwen3_vl")
    model.save_pretrained(tmp_path / "model")
    tokens = torch.cat([torch.arange(2, 8), torch.full((4,), IMAGE), torch.arange(8, 20)])[None]
    torch.manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(16, 3 * 2 * 8 * 8),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (tokens == IMAGE).int(),
    }
    seen: list[Tensor] = []
    second = model.model.language_model.layers[1]
    second.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model.model(input_ids=tokens, **inputs)
    skeleton = open_skeleton(open_source(tmp_path / "model"))
    with BlockStream(skeleton, tokens, dtype=torch.float32, images=[inputs]) as stream:
        stream.prepare()
        skeleton.load_block(0, device="cpu", dtype=torch.float32)
        stream.advance(0)
        ((hidden, _),) = stream.inputs(1)
    torch.testing.assert_close(hidden, seen[0], rtol=1e-4, atol=1e-5)
