"""Names of methods: each leads to a class, a wrong one to a sentence with the name that was meant."""

from __future__ import annotations

import dataclasses

import pytest

from compress.errors import UserError
from compress.recipe import registry
from compress.recipe.recipe import Recipe, shipped
from compress.recipe.registry import RENAMED, did_you_mean, find
from compress.recipe.sections import Step

KINDS = {
    "score": registry.SCORES,
    "saliency": registry.SALIENCIES,
    "structure": registry.STRUCTURES,
    "solver": registry.SOLVERS,
    "transform": registry.TRANSFORMS,
    "exporter": registry.EXPORTERS,
}
ENTRIES = [(kind, name) for kind, table in KINDS.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_name_leads_to_a_class(kind: str, name: str) -> None:
    found = find(kind, name)
    assert isinstance(found, type)
    assert found.__module__.startswith("compress.")


@pytest.mark.parametrize("name", registry.SOLVERS)
def test_every_solver_is_a_frozen_dataclass_with_defaults(name: str) -> None:
    solver = find("solver", name)
    assert dataclasses.is_dataclass(solver)
    assert solver.__dataclass_params__.frozen
    assert solver() == solver()


def test_no_class_is_registered_twice_in_a_kind() -> None:
    for kind, table in KINDS.items():
        assert len(set(table.values())) == len(table), kind


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [("solver", "gptk", "gptq"), ("score", "fischer", "fisher"), ("solver", "spargpt", "sparsegpt")],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(kind: str, wrong: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"no {kind} called '{wrong}'; did you mean '{meant}'\\?"):
        find(kind, wrong)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    assert did_you_mean("qqqqq", ["beta", "alpha"]) == ": known are alpha, beta"


@pytest.mark.parametrize(("before", "now"), RENAMED.items())
def test_a_former_name_is_answered_with_todays(before: str, now: str) -> None:
    assert did_you_mean(before, [now, "zz"]) == f"; did you mean '{now}'?"


def test_a_former_name_counts_only_where_todays_is_known() -> None:
    assert did_you_mean("group", ["groups"]) == "; did you mean 'groups'?"


def test_todays_names_exist() -> None:
    """No former name points at one that was renamed again."""
    known = {*registry.SOLVERS, *Recipe.model_fields, *Step.model_fields, *shipped()}
    options = {field.name for name in registry.SOLVERS for field in dataclasses.fields(find("solver", name))}
    sections = {
        key
        for section in Step.model_fields.values()
        for kind in getattr(section.annotation, "__args__", ())
        for key in getattr(kind, "model_fields", ())
    }
    assert set(RENAMED.values()) <= known | options | sections
    assert not set(RENAMED) & (known | options)
