"""Code that loads an output: which programs, and that a shell reads it as one word."""

from __future__ import annotations

from collections.abc import Callable

from compress.report import FormatChoice, Report
from compress.report.snippets import snippets

Make = Callable[..., Report]


def names(report: Report) -> list[str]:
    return [snippet.name for snippet in snippets(report, "out/mine")]


def test_snippets_of_a_form_that_servers_read(make_report: Make) -> None:
    report = make_report()
    assert names(report) == ["transformers", "Python", "vLLM", "llama.cpp", "verify"]
    first = snippets(report, "out/mine")[0].code
    assert "pip install transformers compressed-tensors" in first
    assert 'from_pretrained("out/mine"' in first
    assert "import compress" not in first


def test_a_server_that_was_not_measured_is_said_to_be(make_report: Make) -> None:
    def code(recipe: str, server: str) -> str:
        report = make_report(recipe={"name": recipe, "steps": []})
        return next(one.code for one in snippets(report, "mine") if one.name == server)

    assert code("w4-gptq", "vLLM") == "vllm serve mine"
    assert code("w8", "vLLM").startswith("# vllm failed to read")
    assert code("my-own", "vLLM").startswith("# vllm was not given")
    assert "# " not in code("w8", "transformers").partition("\n")[2]
    assert "# transformers was not given" in code("my-own", "transformers")


def test_snippets_of_the_native_form_import_us_first(make_report: Make) -> None:
    report = make_report(format=FormatChoice(name="native", reason="masks"))
    assert names(report) == ["transformers", "Python", "verify"]
    assert snippets(report, "out/mine")[0].code.startswith("import compress")


def test_snippets_quote_what_a_shell_would_split(make_report: Make) -> None:
    report = make_report()
    by_name = {snippet.name: snippet.code for snippet in snippets(report, "my out; rm -rf 'x'")}
    assert by_name["vLLM"].splitlines()[-1] == "vllm serve 'my out; rm -rf '\\''x'\\'''"
    assert "\"my out; rm -rf 'x'\"" in by_name["Python"]
    assert {s.name: s.code for s in snippets(report, "a/b-c_d.e")}["vLLM"].endswith("vllm serve a/b-c_d.e")


def test_llama_cpp_is_named_where_it_read_what_the_codes_become(make_report: Make) -> None:
    """Of a recipe and a family that it was measured to read, in a form whose codes `compress export` carries over."""

    def code(recipe: str, architecture: str = "LlamaForCausalLM", **options: object) -> str:
        report = make_report(recipe={"name": recipe, "steps": []}, **options)
        report = report.model_copy(
            update={"source": report.source.model_copy(update={"architecture": architecture})}
        )
        return "".join(one.code for one in snippets(report, "my out") if one.name == "llama.cpp")

    assert code("w4-gptq").splitlines() == [
        "compress export 'my out' --format gguf -o 'my out-gguf'",
        "llama-cli -m 'my out-gguf/model.gguf'",
    ]
    assert code("w4-gptq", "Qwen3MoeForCausalLM") == code("w4-gptq", "GPT2LMHeadModel") == code("w4-gptq")
    assert code("w4-gptq", "Gemma3ForCausalLM")
    assert not code("w4-gptq", "MambaForCausalLM")
    assert not code("my-own")
    assert not code("w4-gptq", format=FormatChoice(name="native", reason="masks"))
