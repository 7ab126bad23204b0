"""What a transform leaves behind: the state of each weight in words, and edits of vectors in the source's dtype."""

from __future__ import annotations

from typing import Any

import torch

from compress.score.statistics import Statistics
from compress.transforms.base import Reader, Transformed
from compress.transforms.fold import Edit, Fold


class View:
    """A weight's name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parameter = f"{name}.weight"

    def get(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter


def reader_of(*names: str) -> Reader:
    views: Any = tuple(View(name) for name in names)
    return Reader(views, (), (), Statistics())


def test_states_say_what_was_done_to_each_weight() -> None:
    done, scale = Transformed(), torch.tensor([2.0, 0.5])
    parameters = {"q.weight": torch.ones(3, 2), "norm.weight": torch.ones(2)}
    reader = reader_of("q")
    done.take(reader, Fold(reader.views, {"norm.weight": 0.0}), scale, parameters)
    done.take(reader_of("k"), None, scale, parameters)
    done.take(reader_of("v"), Fold(()), None, parameters)
    assert done.states == {
        "q": "scaled",
        "k": "unscaled: no vector or layer before it can absorb a scale",
        "v": "unscaled: no gain",
    }
    assert torch.equal(parameters["q.weight"], torch.tensor([[2.0, 0.5]] * 3))
    assert torch.equal(parameters["norm.weight"], torch.tensor([0.5, 2.0]))


def test_edits_of_one_vector_follow_each_other() -> None:
    done = Transformed({"norm.weight": [Edit(torch.tensor([2.0, 4.0])), Edit(torch.tensor([0.5, 0.5]))]})
    values = torch.tensor([8.0, 8.0], dtype=torch.bfloat16)
    edited = done.disk_values("norm.weight", values)
    assert edited.dtype == torch.bfloat16
    assert edited.tolist() == [8.0, 4.0]
    assert done.disk_values("other", values) is values
