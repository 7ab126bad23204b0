"""Native checkpoints (``quant_method: "compress"``) in transformers' own ``from_pretrained``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from compress_kernels.packed_module import PackedModule
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightTransform
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.formats.packed_weight import PackedWeight
from compress.models.kv_cache import store_through
from compress.models.lost_linear import LOST, put_lost_layers
from compress.models.resize import SHAPES, resize
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.runtime.embeddings import has_module
from compress.runtime.load import open_compressed
from compress.runtime.loader_ops import UNUSED, Assemble, Pick, Rename, Tickets, converter
from compress.runtime.registration import METHOD
from compress.runtime.rounding import cache_roundings, round_decoded
from compress.runtime.swap import empty_weight, prepare, swap, swap_dense, tell_decoded

_CACHE_SCALES = r"\.[kv]_scale$"
"""Tensors of the key-value cache, which are read with the configuration."""


class NativeConfig(QuantizationConfigMixin):
    """``quantization_config`` of a native checkpoint, as ``config.json`` has it."""

    def __init__(
        self, version: int | None = None, weights: Mapping[str, Any] | None = None, **others: Any
    ) -> None:
        self.quant_method = METHOD
        self.version = version
        self.weights = dict(weights or {})


class NativeQuantizer(HfQuantizer):
    """Has packed modules wait where dense ones stood, and tells the loader which tensor goes where."""

    requires_calibration = True  # it loads what was compressed before; it does not compress

    def __init__(self, quantization_config: QuantizationConfigMixin, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._folder: Path | None = None
        self._tickets = Tickets()
        self._targets: dict[str, str] = {}
        self._shared: list[tuple[str, str, str]] = []
        self._stand_ins: list[str] = []
        self._converters: list[WeightTransform] = []

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if not checkpoint_files:
            raise UserError("a native checkpoint is loaded from its folder, not from a state dict")
        self._folder = Path(checkpoint_files[0]).parent
        put_lost_layers(model, getattr(model.config, LOST, None) or {})
        resize(model, getattr(model.config, SHAPES, None) or {})
        # Code that came with the checkpoint runs already, if transformers was allowed to.
        trusted = type(model).__module__.startswith("transformers_modules")
        source = open_source(self._folder, trust_remote_code=trusted)
        with torch.device("cpu"):  # the loader has everything that is made here on meta
            skeleton, packed = open_compressed(source)
        for weight in packed.values():
            weight.check(source)
        views = [view for view in (_renamed(view, model) for view in skeleton.views) if view is not None]
        places = swap(model, views, packed)
        for name, place in places.items():
            module = model.get_submodule(place)
            assert isinstance(module, PackedModule)
            for suffix, disk in packed[name].names.items():
                ticket = self._tickets.take(disk)
                if ticket in self._targets:
                    # A factor that several weights share is loaded once; the others are given it afterwards.
                    self._shared.append((place, suffix, self._targets[ticket]))
                    del module._buffers[suffix]
                else:
                    self._targets[ticket] = f"{place}.{suffix}"
        for module in model.modules():
            if isinstance(module, PackedModule):
                _stand_in_for_weight(module)
        # What is packed has no parameter to tie: its module holds the tensors of all that share it.
        own = dict(model.named_parameters(remove_duplicate=False))
        tied = model.all_tied_weights_keys
        model.all_tied_weights_keys = {k: origin for k, origin in tied.items() if k in own and origin in own}
        # An empty tensor stands in for a packed one; a model without a head has no use for the head's.
        self._stand_ins = [name for name, info in source.headers.items() if not info.nbytes]
        for disk in (
            *self._stand_ins,
            *(disk for weight in packed.values() for disk in weight.names.values()),
        ):
            self._tickets.take(disk)
        self._decode_the_rest(views, packed, places, skeleton, source)
        round_decoded(model, views, packed, places, source)
        self._round_caches(model, skeleton)
        ignored = model._keys_to_ignore_on_load_unexpected
        model._keys_to_ignore_on_load_unexpected = {*(ignored or ()), UNUSED, _CACHE_SCALES}

    def _round_caches(self, model: PreTrainedModel, skeleton: Skeleton) -> None:
        """Store keys and values as the checkpoint wants it."""
        for index in range(len(skeleton.blocks)):
            for name, store in cache_roundings(skeleton, index, skeleton.source).items():
                found = next((place for place in _places(model, name) if has_module(model, place)), None)
                if found is not None:
                    store_through(model.get_submodule(found), store)

    def _decode_the_rest(
        self,
        views: Iterable[WeightView],
        packed: Mapping[str, PackedWeight],
        places: Mapping[str, str],
        skeleton: Skeleton,
        source: Source,
    ) -> None:
        """Weights that cannot run packed: each parameter that they are in is put together while it is loaded."""
        groups: dict[str, list[WeightView]] = {}
        for view in views:
            if view.name in packed and view.name not in places:
                groups.setdefault(view.parameter, []).append(view)
        pieces_of = {
            view.name: skeleton.pieces.get(view.parameter, ())
            for view in skeleton.views
            if view.name in packed
        }
        for parameter, found in groups.items():
            clear = [piece for piece in pieces_of[found[0].name] if _nbytes(source, piece.disk)]
            names = [name for view in found for name in packed[view.name].names.values()]
            beside = [name for view in found for name in view.sources if name in self._stand_ins]
            disk = dict.fromkeys((*names, *(piece.disk for piece in clear), *beside))
            operation = Assemble(self, [(view, packed[view.name]) for view in found], clear, self._tickets)
            self._converters.append(
                converter(parameter, [self._tickets.take(name) for name in disk], operation)
            )
        nbytes = sum(
            view.shape[0] * view.shape[1] * skeleton.dtype.itemsize
            for found in groups.values()
            for view in found
        )
        tell_decoded([view.name for found in groups.values() for view in found], nbytes)

    def update_weight_conversions(
        self, weight_conversions: list[WeightTransform], model: PreTrainedModel
    ) -> list[WeightTransform]:
        """The model's own, between a renaming that hides our tensors from them and one that says where these go."""
        own, targets = model.state_dict(), dict(self._targets)
        converters = list(self._converters)
        by_target = {target: ticket for ticket, target in targets.items()}
        for disk in self._stand_ins:
            # A tensor of a name that the model knows is loaded, whatever it was renamed to: ours goes with it.
            if disk in own and disk in by_target:
                ticket = by_target[disk]
                del targets[ticket]
                pair = [ticket, self._tickets.take(disk)]
                converters.append(converter(disk, pair, Pick(self, ticket)))
        hide, reveal = Rename(self._tickets.names), Rename(targets, within=True)
        return [hide, *weight_conversions, reveal, *converters]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for place, suffix, target in self._shared:
            model.get_submodule(place)._buffers[suffix] = model.get_buffer(target)
        for module in model.modules():
            if isinstance(module, PackedModule):
                module.stand_in, module.compute_dtype = None, model.dtype
        prepare(model, self._folder)
        swap_dense(model)
        return model

    def is_serializable(self) -> bool:
        """Copy the folder instead: what is in memory has other names than what is on disk."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained: gradients pass through packed layers, whose weights stay as they are."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Packed products are operators that ``torch.compile`` knows."""
        return True

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        raise UserError("a packed model is not decoded in memory: write it once more with format: dense")


def _stand_in_for_weight(module: PackedModule) -> None:
    """Give initialisation code, which may ask for ``weight`` while the model is loaded, a tensor to leave alone."""
    stored = module._buffers.get("weight")
    module.stand_in = empty_weight()
    if stored is not None:
        stored._is_hf_initialized = True  # type: ignore[attr-defined]  # as in `empty_weight`
        module.stand_in = stored


def _renamed(view: WeightView, model: PreTrainedModel) -> WeightView | None:
    """The view of the same weight in ``model``, which may be the bare decoder; ``None`` if it has no such module."""
    for module in _places(model, view.module):
        if has_module(model, module):
            return view if module == view.module else _at(view, module)
    return None


def _places(model: PreTrainedModel, module: str) -> tuple[str, str, str]:
    """The names that a module may have in ``model``, which may be the bare decoder."""
    prefix = f"{model.base_model_prefix}."
    return module, module.removeprefix(prefix), prefix + module


def _at(view: WeightView, module: str) -> WeightView:
    leaf = view.parameter.rpartition(".")[2]
    return WeightView(**{**vars(view), "parameter": f"{module}.{leaf}"})


def _nbytes(source: Source, disk: str) -> int:
    return source.headers[disk].nbytes if disk in source.headers else 0
