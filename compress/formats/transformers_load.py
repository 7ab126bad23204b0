"""Whether transformers opens a checkpoint that is only planned: its own loading code is run on tensors without values.

All tensors are on the meta device, so that neither memory nor time grows with the model's bytes; only ``weight_shape``, whose
values the loader reads, is real.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from compress_kernels.layouts import TensorSpec
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.quantizers import AutoHfQuantizer

from compress.checkpoint.headers import TensorInfo

PACKAGES = {"compressed-tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes"}
"""Quantization method → the package that transformers loads it with."""


def can_try(method: str) -> bool:
    """Whether the package is installed that transformers needs to open checkpoints of this ``quant_method``."""
    package = PACKAGES.get(method)
    return package is not None and find_spec(package) is not None


def loading_error(
    model: PreTrainedModel,
    quantization_config: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    shapes: Mapping[str, tuple[int, int]],
    source: Mapping[str, TensorInfo],
) -> str | None:
    """Load the planned checkpoint with transformers.

    Args:
        model: of the class to load, with its configuration.
        quantization_config: what ``config.json`` will say.
        specs: the tensors that the output will hold.
        shapes: weight → ``[out, in]``, for the values of ``weight_shape``.
        source: the tensors of the dense checkpoint; what transformers does not find there either is no error.

    Returns:
        What transformers raises or leaves unset, in words; ``None`` where it opens the checkpoint.
    """
    tensors = {name: _stand_in(name, spec, shapes) for name, spec in specs.items()}
    try:
        unset = _load(model, tensors, quantization_config)
        if unset:
            dense = {
                n: torch.empty(info.shape, dtype=info.dtype, device="meta") for n, info in source.items()
            }
            unset -= _load(model, dense, None)
    except Exception as error:  # whatever a model's code raises on the way is the answer
        return _words(error)
    return f"{min(unset)} would be left at random values" if unset else None


def passed_over(
    model: PreTrainedModel, quantization_config: Mapping[str, Any], modules: Collection[str]
) -> str | None:
    """Whether transformers puts quantized modules in the places of dense ones; for packages that read values while they load.

    Args:
        model, quantization_config: as for :func:`loading_error`.
        modules: the names of those whose weights are packed.

    Returns:
        What transformers raises, or a module that it leaves as it is, in words; ``None`` where all are replaced.
    """
    config = copy.deepcopy(model.config)
    try:
        with _quiet(), torch.device("meta"), no_init_weights():
            quantizer = AutoHfQuantizer.from_config(dict(quantization_config), pre_quantized=True)
            opened = type(model)(config)
            quantizer.preprocess_model(
                model=opened, dtype=model.config.dtype, device_map={"": "cpu"}, checkpoint_files=[]
            )
        kinds = {name: type(opened.get_submodule(name)) for name in modules}
    except Exception as error:  # as above
        return _words(error)
    same = [name for name, kind in kinds.items() if kind is type(model.get_submodule(name))]
    return f"it keeps {same[0]} a dense {kinds[same[0]].__name__}" if same else None


def _words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'without a message'}"


def _load(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], quantization_config: Mapping[str, Any] | None
) -> set[str]:
    """The parameters that the checkpoint does not fill, or not in their shape."""
    config = copy.deepcopy(model.config)
    if quantization_config is not None:
        config.quantization_config = copy.deepcopy(dict(quantization_config))
    with _quiet():
        _, info = type(model).from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            device_map={"": "meta"},
            dtype=model.config.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return {*info["missing_keys"], *(found[0] for found in info["mismatched_keys"])}


class _StaysOnCPU(Tensor):
    """A tensor whose values the loader reads, though it moves it to meta."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)


def _stand_in(name: str, spec: TensorSpec, shapes: Mapping[str, tuple[int, int]]) -> Tensor:
    weight, _, suffix = name.rpartition(".")
    if suffix == "weight_shape" and weight in shapes:
        return torch.tensor(shapes[weight]).as_subclass(_StaysOnCPU)
    return torch.empty(spec.shape, dtype=spec.dtype, device="meta")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without reports and progress bars of what transformers and its libraries load: they are read here, not shown."""
    level = transformers.utils.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        # compressed-tensors draws a bar of its own on stderr.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.utils.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
