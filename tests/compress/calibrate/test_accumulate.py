"""Summed moments against float64 means over all inputs at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.calibrate.accumulate import SAMPLED, Accumulator, add_lower_gram, mirror_lower

ALL = frozenset({"gram", "diagonal", "mean", "mean_abs", "max_abs", "cross"})


def batches(columns: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Inputs ``[batch, tokens, in]`` of the compressed and of the dense model."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for tokens in (3, 0, 7):
        inputs = (torch.randn(2, tokens, columns, generator=generator) + 0.5).to(dtype)
        noise = 0.1 * torch.randn(2, tokens, columns, generator=generator)
        found.append((inputs, (inputs.float() + noise).to(dtype)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [5, 300])  # within a strip, and over several of them
def test_moments(columns: int, dtype: torch.dtype) -> None:
    seen = Accumulator(ALL, columns)
    for inputs, dense in batches(columns, dtype):
        seen.add(inputs, dense)
    found = seen.finish()
    x, y = (
        torch.cat([pair[i].reshape(-1, columns) for pair in batches(columns, dtype)]).double() for i in (0, 1)
    )
    expected = {
        "gram": x.T @ x / len(x),
        "cross": y.T @ x / len(x),
        "diagonal": x.square().mean(0),
        "mean": x.mean(0),
        "mean_abs": x.abs().mean(0),
        "max_abs": x.abs().amax(0),
    }
    assert found.tokens == 20
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name).double(), value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_diagonal_alone_is_that_of_the_gram_matrix() -> None:
    alone, both = Accumulator(frozenset({"diagonal"}), 5), Accumulator(frozenset({"diagonal", "gram"}), 5)
    for inputs, _ in batches(5):
        alone.add(inputs)
        both.add(inputs)
    torch.testing.assert_close(alone.finish().diagonal, both.finish().diagonal)


@pytest.mark.parametrize("columns", [3, 256, 700])
def test_half_of_a_gram_matrix_is_all_of_it(columns: int) -> None:
    inputs = torch.randn(40, columns, generator=torch.Generator().manual_seed(0))
    gram = torch.zeros(columns, columns)
    add_lower_gram(gram, inputs)
    mirror_lower(gram)
    torch.testing.assert_close(gram.double(), inputs.double().T @ inputs.double(), rtol=1e-4, atol=1e-4)
    assert torch.equal(gram, gram.T)


def test_merged_accumulators_have_seen_everything() -> None:
    parts, whole = [Accumulator(ALL, 5) for _ in range(3)], Accumulator(ALL, 5)
    for part, (inputs, dense) in zip(parts, batches(5), strict=True):
        part.add(inputs, dense)
        whole.add(inputs, dense)
    for part in parts[1:]:
        parts[0].merge(part)
    merged, expected = parts[0].finish(), whole.finish()
    assert merged.tokens == expected.tokens
    for name in ALL:
        torch.testing.assert_close(getattr(merged, name), getattr(expected, name), msg=name)


@pytest.mark.parametrize("step", [1, 7, 1000, 5000])
def test_a_sample_is_evenly_spaced_over_all_inputs(step: int) -> None:
    seen, total = Accumulator(frozenset({"sample"}), 1), 5000
    for start in range(0, total, step):
        seen.add(torch.arange(start, min(start + step, total), dtype=torch.float32).unsqueeze(1))
    sample = seen.finish().sample
    assert sample is not None
    assert SAMPLED // 2 < len(sample) <= SAMPLED
    assert torch.equal(sample.flatten(), torch.arange(0, total, 8, dtype=torch.float32))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="no statistic is called"):
        Accumulator(frozenset({"colour"}), 5)
    with pytest.raises(ValueError, match="dense model's inputs"):
        Accumulator(frozenset({"cross"}), 5).add(torch.ones(2, 5))


def test_tokens_of_different_weights() -> None:
    seen = Accumulator(frozenset({"gram", "cross", "mean"}), 5)
    weights = [
        torch.rand(2 * tokens, generator=torch.Generator().manual_seed(tokens)) for tokens in (3, 0, 7)
    ]
    for (inputs, dense), counted in zip(batches(5), weights, strict=True):
        seen.add(inputs, dense, counted)
    found = seen.finish()
    x, y = (torch.cat([pair[i].reshape(-1, 5) for pair in batches(5)]).double() for i in (0, 1))
    scaled = x * torch.cat(weights).double().unsqueeze(1)
    torch.testing.assert_close(found.gram.double(), x.T @ scaled / len(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cross.double(), y.T @ scaled / len(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean.double(), x.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gram_matrix_alone_is_summed_of_inputs_of_any_dtype(dtype: torch.dtype) -> None:
    inputs = torch.randn(3, 30, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    alone, with_more = Accumulator(frozenset({"gram"}), 40), Accumulator(frozenset({"gram", "mean"}), 40)
    for batch in inputs:
        alone.add(batch)
        with_more.add(batch)
    alone.add(inputs[0, :0])
    flat = inputs.double().reshape(-1, 40)
    first, second = alone.finish(), with_more.finish()
    assert first.gram is not None
    torch.testing.assert_close(first.gram.double(), flat.T @ flat / 90, rtol=1e-5, atol=1e-5)
    assert torch.equal(first.gram, second.gram)
    assert first.tokens == second.tokens == 90


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_cross_moment_has_the_dense_inputs_in_its_rows(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, dense = (torch.randn(50, 40, generator=generator).to(dtype) for _ in range(2))
    both = Accumulator(frozenset({"gram", "cross"}), 40)
    both.add(inputs, dense)
    found = both.finish()
    assert found.cross is not None
    torch.testing.assert_close(
        found.cross.double(), dense.double().T @ inputs.double() / 50, rtol=1e-5, atol=1e-5
    )
