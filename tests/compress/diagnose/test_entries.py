"""Each entry on weights and inputs whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from compress.diagnose import coverage, drift, scales
from compress.diagnose.base import role_of
from compress.diagnose.control import METHODS, Control, losses
from compress.diagnose.masks import Masks, kept, overlap
from compress.diagnose.noise import confidence
from compress.diagnose.norms import Norms
from compress.diagnose.outliers import Outliers
from compress.diagnose.redundancy import Redundancy
from compress.diagnose.shape import entropy
from compress.diagnose.sinks import Sinks
from compress.diagnose.spectrum import Spectrum, squared_singular_values
from compress.linalg.generalized_gaussian import exponent
from compress.linalg.leverage import leverage, second_moment
from compress.models.views import WeightView
from compress.score.statistics import Statistics


def _view(name: str = "model.layers.3.mlp.up_proj", block: int | None = 3) -> WeightView:
    return WeightView(name, f"{name}.weight", "linear", block, (64, 64), None, (f"{name}.weight",))


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_roles_are_the_same_in_every_block_and_for_every_expert() -> None:
    assert role_of(_view()) == "mlp.up_proj"
    assert role_of(_view("model.layers.3.mlp.experts.17.up_proj")) == "mlp.experts.*.up_proj"
    assert role_of(_view("transformer.h.0.attn.c_attn")) == "attn.c_attn"
    assert role_of(_view("lm_head", None)) == "lm_head"


@pytest.mark.parametrize("nu", [0.7, 1.0, 2.0, 4.0])
def test_the_exponent_of_a_generalized_gaussian(nu: float) -> None:
    draws = stats.gennorm.rvs(nu, size=200_000, random_state=0)
    assert exponent(torch.from_numpy(draws)) == pytest.approx(nu, rel=0.03)


def test_the_entropy_of_codes() -> None:
    codes = torch.arange(-7, 8).repeat(16, 8).float()  # 15 codes, alike
    assert entropy(codes) == pytest.approx(math.log2(15), rel=1e-6)
    one = torch.zeros(8, 128)
    one[:, 0] = 1
    share = 1 / 128
    assert entropy(one) == pytest.approx(
        -share * math.log2(share) - (1 - share) * math.log2(1 - share), rel=1e-6
    )


def test_the_spectrum_of_a_weight_of_low_rank() -> None:
    weight = _random(48, 4) @ _random(4, 96, seed=1)
    torch.testing.assert_close(
        squared_singular_values(weight)[:4],
        torch.linalg.svdvals(weight.double())[:4].square().float(),
        rtol=1e-3,
        atol=0,
    )
    entry = Spectrum()
    entry.see_weight(_view(), weight, None)
    finding = entry.finish()
    assert finding.rows[0][2] == pytest.approx(1.0, abs=1e-4)
    assert "low rank pays" in finding.advice
    entry = Spectrum()
    entry.see_weight(_view(), _random(64, 64), None)
    assert "loses more" in entry.finish().advice


def test_rows_and_columns_that_stand_out() -> None:
    weight = torch.ones(16, 16)
    weight[3] *= 10
    entry = Norms()
    entry.see_weight(_view(), weight, None)
    assert "row of mlp.up_proj in block 3 is 10.0" in entry.finish().advice
    entry = Norms()
    entry.see_weight(_view(), weight.T, None)
    assert "column" in entry.finish().advice
    entry = Norms()
    entry.see_weight(_view(), torch.ones(4, 4), None)
    assert "alike" in entry.finish().advice


def test_twins_among_the_rows() -> None:
    weight = _random(40, 256)
    weight[7] = -2 * weight[31]
    entry = Redundancy()
    entry.see_weight(_view(), weight, None)
    row = entry.finish().rows[0]
    assert row[1] == pytest.approx(2 / 40)
    assert row[2] == pytest.approx(1.0, abs=0.15)


def test_an_input_channel_that_stands_out() -> None:
    sample = _random(512, 64)
    sample[:, 5] *= 100
    inputs = Statistics(512, diagonal=sample.square().mean(0), max_abs=sample.abs().amax(0), sample=sample)
    entry = Outliers()
    entry.see_weight(_view(), torch.zeros(1, 64), inputs)
    finding = entry.finish()
    assert finding.rows[0][2] == pytest.approx(1.0, abs=0.01)
    assert finding.rows[0][3] == pytest.approx(
        stats.kurtosis(sample.flatten().numpy(), fisher=False), rel=0.05
    )
    plain = Statistics(512, diagonal=torch.ones(64), max_abs=torch.full((64,), 3.0), sample=_random(512, 64))
    entry = Outliers()
    entry.see_weight(_view(), torch.zeros(1, 64), plain)
    assert "as they are" in entry.finish().advice


def test_a_token_that_is_a_sink() -> None:
    states = _random(3, 20, 32)
    states[:, 0] *= 1000
    entry = Sinks()
    entry.see_block(0, [_random(3, 20, 32)])
    entry.see_block(1, [states[:2], states[2:]])
    finding = entry.finish()
    assert "Before block 1" in finding.advice
    assert finding.rows[1][2] == 1.0


def test_masks_of_two_texts() -> None:
    weight = _random(8, 64).abs() + 1
    sample = _random(400, 64)
    entry = Masks()
    entry.see_weight(_view(), weight, Statistics(400, sample=sample))
    stable = entry.finish().rows[0][1]
    sample[:200, :32] *= 100  # other channels matter in the first half
    sample[200:, 32:] *= 100
    entry = Masks()
    entry.see_weight(_view(), weight, Statistics(400, sample=sample))
    assert isinstance(stable, float)
    assert stable < 0.3
    assert entry.finish().rows[0][1] == pytest.approx(1.0, abs=0.1)
    mask = kept(torch.tensor([[4.0, 1.0, 3.0, 2.0]]))
    assert mask.tolist() == [[True, False, True, False]]
    assert overlap(mask, mask) == 1.0


def test_coverage_of_another_text() -> None:
    calibration = [_random(4, 50, 32) * torch.cat([torch.ones(16), torch.full((16,), 0.01)])]
    same, other = (
        [_random(4, 50, 32, seed=1) * torch.cat([torch.ones(16), torch.full((16,), 0.01)])],
        [_random(4, 50, 32)],
    )
    moment = second_moment(calibration)
    assert leverage(moment, moment) == pytest.approx(1.0)
    assert leverage(moment, second_moment(same)) == pytest.approx(1.0, abs=0.2)
    foreign = leverage(moment, second_moment(other))
    assert foreign > 10
    assert "calibrate on text like it" in coverage.finding([1.0, foreign]).advice
    assert "Before block 1" in coverage.finding([1.0, foreign]).advice


def test_drift_between_two_models() -> None:
    dense = _random(2, 5, 16)
    angle, error = drift.angle_and_error([dense], [dense])
    assert (round(angle, 4), error) == (0.0, 0.0)
    swapped = torch.cat([-dense[..., 8:], dense[..., :8]], -1) * dense.norm(dim=-1, keepdim=True)
    assert drift.angle_and_error([dense], [2 * dense])[1] == pytest.approx(1.0)
    assert 45 < drift.angle_and_error([dense], [swapped])[0] < 135
    assert "Block 1 turns" in drift.finding([(0.0, 0.0), (1.0, 0.1), (9.0, 0.2)]).advice


def test_the_calibration_error_of_what_is_said() -> None:
    # Always sure by .75 and right in three of four cases.
    scores = torch.log(torch.tensor([0.75, 0.25])).expand(401, 2)
    tokens = torch.tensor([0] + [0, 0, 0, 1] * 100)
    finding = confidence([scores], [tokens])
    assert finding.rows == (("0.7 to 0.8", 400, pytest.approx(0.75), pytest.approx(0.75)),)
    assert "error is 0%" in finding.advice
    wrong = confidence([scores], [1 - tokens])
    assert "error is 50%, overconfident" in wrong.advice


def test_nulls_of_a_weight_whose_answer_is_known() -> None:
    inputs = torch.zeros(6, 8)
    inputs[:, :4] = _random(6, 4)
    weight = torch.ones(3, 8)
    # The inputs reach the first half of the columns alone: Wanda keeps these, magnitude cannot tell.
    found = losses(weight, inputs)
    assert found["Wanda"] == pytest.approx(0.0, abs=1e-9)
    assert found["random mask"] > 0.1
    assert found["nearest"] == pytest.approx(0.0, abs=1e-9)
    entry = Control()
    statistics = Statistics(6, sample=inputs)
    for block in (2, 3):
        entry.see_weight(_view(block=block), _random(16, 8, seed=block), statistics)
    finding = entry.finish()
    assert finding.columns[1:6] == METHODS
    row = finding.rows[0]
    assert float(str(row[5])) < float(str(row[4]))  # nearest rounding loses less than random rounding
    assert "Wanda's masks lose" in finding.advice


def test_random_rounding_is_right_on_average() -> None:
    weight = _random(64, 128)
    step = float(weight[0].abs().max() / 7)
    found = losses(weight, torch.eye(128))
    energy = float(weight.square().mean())
    # Variance of the rounding: p (1 - p) step² on average, a sixth; of nearest rounding a twelfth.
    assert found["random rounding"] / found["nearest"] == pytest.approx(2.0, rel=0.1)
    assert found["nearest"] == pytest.approx(step**2 / 12 / energy, rel=0.5)


def test_methods_that_change_places_are_marked() -> None:
    small = {"a": 0.1, "b": 0.2, "c": 0.3}
    crossing = scales.finding(("small", small), ("large", {"a": 0.2, "b": 0.1, "c": 0.3}))
    assert [row[5] for row in crossing.rows] == ["crosses", "crosses", ""]
    assert [row[3:5] for row in crossing.rows] == [(1, 2), (2, 1), (3, 3)]
    assert "A is ahead of b in small and behind it in large" in crossing.advice
    assert "rank the methods alike" in scales.finding(("small", small), ("large", small)).advice


def test_crowded_rows_have_more_energy_than_random_ones() -> None:
    even, crowded = Redundancy(), Redundancy()
    rows = _random(512, 64)
    even.see_weight(_view(), rows, None)
    crowded.see_weight(_view(), rows + 1, None)
    assert even.finish().rows[0][3] == pytest.approx(1.0, abs=0.2)
    assert float(str(crowded.finish().rows[0][3])) > 10
