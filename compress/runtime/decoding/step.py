"""A decoding step of a model: token and position in, logits out, keys and values written in place."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention import native_attention
from .cache import traced_cache
from .norms import native_norms, rms_norms


class PlainStep(nn.Module):
    """A decoding step by the model's code with its cache as arguments, norms and attention by ``compress_kernels``.

    A record of it holds one path through the model's code. Whether another token takes another path (experts) shows where the
    record and this give other logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._norms = rms_norms(model)

    def forward(self, token: Tensor, position: Tensor, *cache: Tensor) -> Tensor:
        """Logits ``[1, 1, vocabulary]``; the key and value of ``token`` are written at ``position``."""
        with native_norms(self._norms), native_attention(self.model):
            output = self.model(
                token,
                past_key_values=traced_cache(cache, position),
                position_ids=position[None],
                use_cache=True,
                return_dict=True,
            )
        logits: Tensor = output.logits
        return logits
