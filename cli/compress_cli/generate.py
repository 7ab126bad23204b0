"""`compress generate`: text from a checkpoint, as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import print_json

if TYPE_CHECKING:
    from compress.runtime.generate import Generated


def generate_text(
    out: options.AnyCheckpoint,
    prompt: Annotated[str, typer.Argument(help="The words to go on from.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 128,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="How freely to choose; 0 takes the likeliest token.",
            show_default="what the checkpoint says",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 32) - 1, help="Decides the choices.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a message to a chat model: use its chat template.")
    ] = False,
    device: options.Device = "auto",
    dtype: options.Precision = options.Dtype.auto,
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    check: options.Check = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Continue a prompt, then say how fast that was and what memory it took.

    The text goes to stdout, the figures to stderr. Packed weights stay packed.

    Examples:

    `compress generate ./my-model-w4 "Once upon a time" --max-new-tokens 64`

    `compress generate ./my-model-w4 "Why is the sky blue?" --chat --temperature 0.7 --threads 4`
    """
    result = library.generate(
        options.local(out),
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
        device=device,
        dtype=dtype.value,
        threads=threads,
        trust_remote_code=trust_remote_code,
        check=check,
        write=(lambda text: None) if json else (lambda text: typer.echo(text, nl=False)),
    )
    if json:
        rates = {"prefill_rate": result.prefill_rate, "decode_rate": result.decode_rate}
        print_json({**vars(result), **rates})
        return
    typer.echo()
    if not quiet:
        _tell(result)


def _tell(result: Generated) -> None:
    memory = f"{words.in_bytes(result.memory_bytes)} of memory, {words.in_bytes(result.peak_bytes)} at most"
    Console(stderr=True, highlight=False).print(
        f"{result.new_tokens} tokens at {words.rate(result.decode_rate)} tokens/s; "
        f"prompt of {result.prompt_tokens} at {words.rate(result.prefill_rate)} tokens/s; {memory}.",
        markup=False,
        soft_wrap=True,
    )
