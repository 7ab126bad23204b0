"""What the report says of the shape that a model was pruned to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from compress.prune.notes import shape_notes, whole_note
from compress.prune.units import Part


def notes(
    dropped: tuple[int, ...] = (), kept: Any = None, errors: Any = None, extra: tuple[str, ...] = ()
) -> list[str]:
    record = {} if kept is None else {"kept": kept, "errors": errors}
    skeleton: Any = SimpleNamespace(source=SimpleNamespace(dropped=dropped, width_pruned=record), extra=extra)
    return list(shape_notes(skeleton))


def test_a_whole_model_has_no_notes() -> None:
    assert notes() == []


def test_blocks_by_their_numbers() -> None:
    assert notes((3, 7)) == ["Blocks left out (numbered as in the original): 3, 7."]


def test_the_same_number_of_units_in_every_block() -> None:
    (note,) = notes(kept={"neurons": ["f0", "3c"]}, errors={"a": 0.01, "b": 0.0253})
    assert note.startswith("Of the neurons of every block 4 stay;")
    assert note.endswith("lose at most 2.53% of their outputs' energy.")


def test_different_numbers_are_a_range() -> None:
    (note,) = notes(kept={"neurons": ["ff", "1", "f"]}, errors={"a": 0.5})
    assert note.startswith("Of the neurons of every block 1 to 8 stay;")


def test_a_note_for_each_kind() -> None:
    found = notes((0,), kept={"groups": ["1"], "neurons": ["7"]}, errors={"a": 0.5})
    assert [note.split()[2] for note in found] == ["out", "groups", "neurons"]


def test_a_share_that_keeps_all_says_which_one_would_not() -> None:
    part = Part("neurons", total=11008, kept=11008, config={}, dims={}, readers={}, step=64)
    note = whole_note(part, 0.999)
    assert note.startswith("width_pruning.neurons 0.999 keeps all 11008 neurons of every block")
    share = float(note.rpartition(" ")[2])
    assert round(share * 11008 / 64) * 64 < 11008
    assert "at most" not in whole_note(Part("groups", 1, 1, {}, {}, {}), 0.6)


def test_what_the_pruned_model_does_not_use_keeps_the_old_shape() -> None:
    """The block that predicts further tokens lies behind the others and has as many experts as they had."""
    spare = ("model.layers.3.mlp.gate.weight", "model.layers.3.eh_proj.weight")
    assert notes(extra=spare) == []
    for found in (notes((1,), extra=spare), notes(kept={"experts": ["3"]}, errors={}, extra=spare)):
        assert (
            "2 tensors that no parameter of the model uses, such as model.layers.3.mlp.gate.weight, stay"
            in found[-1]
        )
    assert "1 tensor that no parameter of the model uses, such as a, stays" in notes((1,), extra=("a",))[-1]
