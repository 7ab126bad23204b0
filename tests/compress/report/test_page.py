from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compress.evaluation import CheckpointFigures, Evaluation
from compress.report import Bytes, Report, render_report, write_report
from compress.report import page as page_module

VOID = {"meta", "link", "input", "br", "wbr"}
LOADING = {"src", "href", "srcset", "poster", "data", "action", "background", "xlink:href"}
HOSTILE = '"><script>alert("x")</script><img src=https://example.org/x>\'&'


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for key, value in attrs if key in LOADING]
        self.loads += [key for key, _ in attrs if key.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for key, value in attrs if key in LOADING]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_page_says_what_was_done(make_report: Callable[..., Report]) -> None:
    page = Page(render_report(make_report(), [], name="mine"))
    for expected in (
        "25.2 MB",
        "4.12",
        "a-llama",
        "w4-gptq",
        "it fits.",
        'AutoModelForCausalLM.from_pretrained("mine", dtype="auto")',
        "vllm serve mine",
        "compress verify mine --source a-llama",
        "on average 60% lower",
        "The 10 worst weights",
        "All 21 weights",
        "6.8 s",
        "190 MB",
        "not targeted",
        "2 tensors",
        "as planned",
        "ab" * 32,
        "A note.",
    ):
        assert expected in page.words, expected
    assert "Quality against bytes" not in page.words


def test_the_page_shows_evaluations(
    make_report: Callable[..., Report], make_evaluation: Callable[..., Evaluation]
) -> None:
    page = Page(render_report(make_report(), [make_evaluation()], name="mine"))
    for expected in (
        "a context of 256 tokens",
        "held-out.txt",
        "w8",
        "0.0029",
        "99.7%",
        "tiny · acc",
        "0.500 ± 0.100",
    ):
        assert expected in page.words, expected
    assert "KL to the dense model 0.0029 nats" in page.words  # the headline knows which row is its own
    assert page.tags.count("circle") >= 3


def test_nothing_is_loaded_or_run(
    make_report: Callable[..., Report], make_evaluation: Callable[..., Evaluation]
) -> None:
    text = render_report(make_report(), [make_evaluation()], name="mine")
    assert re.findall(r"https?:", text) == []
    assert re.findall(r"@import|url\(", text) == []
    page = Page(text)
    assert page.loads == ["data:,"]
    assert not {"img", "iframe", "object", "embed", "form"} & set(page.tags)


def test_the_only_script_is_the_one_that_the_page_allows(make_report: Callable[..., Report]) -> None:
    text = render_report(make_report(), [], name="mine")
    (code,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'\""
        in text
    )
    assert code == Path(page_module.__file__).with_name("sort.js").read_text(encoding="utf-8")


def test_hostile_names_are_only_text(
    make_report: Callable[..., Report], make_evaluation: Callable[..., Evaluation]
) -> None:
    report = make_report(suffix=HOSTILE, sensitivity={HOSTILE: HOSTILE})
    page = Page(render_report(report, [make_evaluation(suffix=HOSTILE)], name=HOSTILE))
    assert page.loads == ["data:,"]
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert 'alert("x")' in page.words


def test_a_large_model_stays_small(make_report: Callable[..., Report]) -> None:
    text = render_report(make_report(count=60), [], name="mine")
    assert len(text.encode()) < 600_000
    Page(text)


def test_a_long_list_of_weights_is_left_to_the_json(make_report: Callable[..., Report]) -> None:
    text = render_report(make_report(count=100), [], name="mine")
    assert "All 700 weights are listed in" in Page(text).words
    assert len(text.encode()) < 600_000


def test_experts_share_a_cell(make_report: Callable[..., Report]) -> None:
    weights = tuple(
        weight.model_copy(
            update={"name": f"model.layers.{weight.block}.mlp.experts.{index}.up_proj", "kind": "expert"}
        )
        for weight in make_report().weights[::7]
        for index in range(8)
    )
    text = render_report(make_report(weights=weights), [], name="mine")
    assert "(mean of 8)" in text
    assert text.count('<th scope="row">up_proj</th>') == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": ()},
        {"skipped": (), "notes": ()},
        {
            "steps": (),
            "blocks": (),
            "seconds": None,
            "peak_bytes": None,
            "machine": None,
            "calibration": None,
        },
        {"bytes": Bytes(source=100, planned=120, actual=130)},
        {"shards": ()},
    ],
    ids=["no weights", "nothing skipped", "no times", "grown", "no shards"],
)
def test_whatever_is_missing_is_left_out(
    make_report: Callable[..., Report], changes: dict[str, object]
) -> None:
    Page(render_report(make_report(**changes), [], name="mine"))


@pytest.mark.parametrize("error", [None, 0.0, math.nan])
def test_weights_without_a_usable_error(make_report: Callable[..., Report], error: float | None) -> None:
    weights = tuple(
        weight.model_copy(update={"error": error, "error_nearest": None}) for weight in make_report().weights
    )
    Page(render_report(make_report(weights=weights), [], name="mine"))


def test_weights_outside_the_blocks_have_a_row(make_report: Callable[..., Report]) -> None:
    report = make_report()
    head = report.weights[0].model_copy(update={"name": "lm_head", "block": None, "kind": "head"})
    assert (
        "lm_head" in Page(render_report(make_report(weights=(*report.weights, head)), [], name="mine")).words
    )


def test_a_native_checkpoint_is_loaded_with_the_package(make_report: Callable[..., Report]) -> None:
    native = make_report().format.model_copy(update={"name": "native", "servers": ()})
    words = Page(render_report(make_report(format=native), [], name="it's mine")).words
    assert "import compress" in words
    assert "vllm" not in words
    assert "compress verify 'it'\\''s mine'" in words


def test_broken_and_identical_checkpoints_are_not_drawn_but_listed(
    make_report: Callable[..., Report],
    make_row: Callable[..., CheckpointFigures],
    make_evaluation: Callable[..., Evaluation],
) -> None:
    rows = (
        make_row("broken", 9_000_000, math.nan, perplexity=math.inf, top1=0.0),
        make_row("same", 25_000_000, 0.0),
        make_row("hub/name", 0, 0.1, bytes_on_disk=None, bits_per_weight=None),
    )
    evaluation = dataclasses.replace(make_evaluation(), candidates=rows)
    words = Page(render_report(make_report(), [evaluation], name="mine")).words
    assert "∞" in words
    assert "same" in words
    assert "lower is better" not in words


def test_an_evaluation_beside_the_page_is_found(
    make_report: Callable[..., Report], make_evaluation: Callable[..., Evaluation], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_report(make_report(), None, folder / "report.html")
    assert "Quality against bytes" not in (folder / "report.html").read_text(encoding="utf-8")
    make_evaluation().save(folder / "evaluation.json")
    write_report(make_report(), None, folder / "report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Quality against bytes" in text
    assert "<h1>mine</h1>" in text


def test_the_same_report_gives_the_same_page(make_report: Callable[..., Report]) -> None:
    assert render_report(make_report(), [], name="mine") == render_report(make_report(), [], name="mine")
