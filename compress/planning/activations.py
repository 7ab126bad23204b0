"""Whether the inputs of a weight can be rounded as a step asks for: told when the recipe is planned."""

from __future__ import annotations

from compress_kernels.activations import ActivationScheme

from compress.errors import UserError
from compress.models.views import WeightView


def check_activations(view: WeightView, scheme: ActivationScheme, step: str) -> None:
    """Refuse a scheme that the inputs of a weight cannot have.

    Args:
        view: the weight.
        scheme: of its inputs.
        step: the key of the recipe's step, for messages.

    Raises:
        UserError: the weight has no inputs to round, a group does not divide them, or no calibration data reaches it.
    """
    if view.kind == "embedding":
        raise UserError(
            f"{step}.activations: {view.name} is an embedding, which looks rows up and has no inputs to round: give it a step "
            "without 'activations'"
        )
    if scheme.group_size is not None and view.shape[1] % scheme.group_size:
        raise UserError(
            f"{step}.activations: group_size {scheme.group_size} does not divide the {view.shape[1]} inputs of {view.name}: "
            "choose another one, strategy 'token', or add the weight to 'ignore'"
        )
    if scheme.stored and view.block is None:
        raise UserError(
            f"{step}.activations: {view.name} lies outside the decoder blocks, where no data is seen to calibrate static "
            "scales with: give it dynamic activations or add it to 'ignore'"
        )
