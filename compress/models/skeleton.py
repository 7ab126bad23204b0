"""A model on meta, and everything there is to know about it without reading a weight; its parts are loaded
one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.checkpoint.source import Source, TensorInfo, check_finite
from compress.errors import UserError
from compress.models.build import build_on_meta, compute_buffers, own_buffers, set_dtype
from compress.models.conversion import Piece
from compress.models.disk_map import DiskMap, map_disk, missing
from compress.models.flow import Flow, watch_flow
from compress.models.loading import Loader
from compress.models.towers import find_blocks
from compress.models.unread import refuse_undecoded
from compress.models.unsupported import reasons
from compress.models.views import WeightView, block_of, find_views
from compress.system.device import COMPUTED_IN

_LOG = logging.getLogger(__name__)

Decode = Callable[[str], "Tensor | None"]
"""Gives the dense weight `[out, in]` of a view by its name, or None for one that is to be read from disk."""


@dataclass(eq=False)
class Skeleton:
    """source: where it is read from. model: on meta but for what is loaded. blocks: the names of its
    decoder blocks.

    views: every weight that can be compressed. unsupported: every other disk tensor of two or more
    dimensions, with the reason why it cannot be. extra: disk tensors that no parameter uses. tied:
    parameter → the one that it is tied to.
    """

    source: Source
    model: PreTrainedModel
    blocks: list[str]
    views: tuple[WeightView, ...]
    unsupported: dict[str, str]
    extra: tuple[str, ...]
    tied: dict[str, str]
    _disk: DiskMap
    _decode: Decode | None = None
    _meta: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _flow: Flow | None = field(default=None, repr=False)
    dtype: torch.dtype = torch.float32
    """The checkpoint's own. The model on meta is of a stand-in for the dtype of the run, and has no say in it."""

    @classmethod
    def open_skeleton(
        cls,
        source: Source,
        *,
        trust_remote_code: bool = False,
        supplied: Mapping[str, Sequence[int]] | None = None,
        decode: Decode | None = None,
    ) -> Skeleton:
        """Builds the model of a source on meta and finds what each of its parameters is on disk.

        supplied: views, by name with their shapes, that the source does not hold in the clear, such as the
        packed weights of a compressed checkpoint; `decode` must give them. trust_remote_code: as if the
        source had been opened with it.
        Raises: `UserError` for an unknown model, missing or misshapen tensors, remote code that was not
        allowed.
        """
        if trust_remote_code and not source.trust_remote_code:
            source = replace(source, trust_remote_code=True)
        _LOG.info("building the model of %s without its weights", source.name)
        model = build_on_meta(source)
        blocks = find_blocks(model)
        given = {f"{name}.weight": shape for name, shape in (supplied or {}).items()}
        disk = map_disk(model, source, given)
        views = tuple(find_views(model, blocks, disk, source, set(supplied or ())))
        _check_missing(model, source, disk, views, set(supplied or ()))
        extra = tuple(name for name in disk.extra if name in source.headers)
        if not supplied:
            refuse_undecoded(model, source, disk.pieces, extra)
        unsupported = reasons(model, blocks, source, disk, views)
        meta = dict((*model.named_parameters(), *model.named_buffers()))
        tied = dict(disk.tied)
        dtype = _own_dtype(model, source)
        return cls(source, model, blocks, views, unsupported, extra, tied, disk, decode, meta, dtype=dtype)

    @property
    def pieces(self) -> Mapping[str, tuple[Piece, ...]]:
        """Parameter → where on disk its parts lie, for each parameter that is put together from known
        parts."""
        return self._disk.pieces

    @property
    def stored(self) -> dict[str, tuple[str, ...]]:
        """Parameter → the disk tensors that it is made of, for each parameter that is on disk."""
        pieces = {name: tuple(piece.disk for piece in parts) for name, parts in self._disk.pieces.items()}
        conversions = {name: tuple(made.names) for name, made in self._disk.conversions.items()}
        return {**pieces, **conversions}

    def twins(self, parameter: str) -> tuple[str, ...]:
        """Further disk tensors that hold a parameter once more, such as a tied head that is on disk too."""
        return self._disk.twins.get(parameter, ())

    @property
    def shared_blocks(self) -> tuple[str, str] | None:
        """Two blocks that share a weight, or None where no two do."""
        for target, origin in self.tied.items():
            first, second = block_of(origin, self.blocks), block_of(target, self.blocks)
            if first is not None and second is not None and first != second:
                return self.blocks[first], self.blocks[second]
        return None

    @property
    def flow(self) -> Flow:
        """What a forward of the model does with the linear layers of its blocks; watched once, on a model of its own."""
        if self._flow is None:
            self._flow = watch_flow(build_on_meta(self.source), self.blocks)
        return self._flow

    def with_weights(self, decode: Decode) -> Skeleton:
        """The same model, loaded into the same modules, with the weights that ``decode`` gives in the place of the disk's."""
        return replace(self, _decode=decode)

    def block_module(self, index: int) -> nn.Module:
        """The module of a block, loaded or on meta."""
        return self.model.get_submodule(self.blocks[index])

    def parameter_of(self, view: WeightView) -> Tensor:
        """The live parameter that the view is (a slice of)."""
        return self.model.get_parameter(view.parameter)

    def block_views(self, index: int | None) -> tuple[WeightView, ...]:
        """The views of one block; with None those outside of the blocks."""
        return tuple(view for view in self.views if view.block == index)

    def put_module(self, name: str, module: nn.Module) -> None:
        """Puts another module, on meta, in the place of one that is not loaded yet. What it has by the old
        one's names is loaded as before; the rest is the caller's to fill."""
        self.model.set_submodule(name, module)
        kept = {f"{name}.{own}" for own in (*dict(module.named_parameters()), *dict(module.named_buffers()))}
        for old in [own for own in self._meta if own.startswith(f"{name}.") and own not in kept]:
            del self._meta[old]

    def load_block(
        self,
        index: int,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        check: bool = False,
        mapped: bool = False,
    ) -> None:
        """Reads the parameters of one block and computes its buffers. Floating-point tensors are cast to
        `dtype`, but for those that the model keeps in a dtype of its own.

        check: refuse NaN and infinity. mapped: what is used as it lies on disk takes no memory until it is changed;
        the file must stay. Raises: `UserError` naming the tensor.
        """
        self._load(self._names(index), device, dtype, check, mapped)

    def block_on_disk(self, index: int) -> list[TensorInfo]:
        """What `load_block` reads of the source's files."""
        disk: dict[str, None] = {}
        for own in self._names(index):
            disk |= dict.fromkeys(piece.disk for piece in self._disk.pieces.get(own, ()))
            if own in self._disk.conversions:
                disk |= dict.fromkeys(self._disk.conversions[own].names)
        return [info for name in disk if name in self.source.headers for info in self.source.on_disk(name)]

    def release_block(self, index: int) -> None:
        """Puts the block back on meta; what was changed in it is gone."""
        self._release(self._names(index))

    def load_rest(
        self, *, device: torch.device | str, dtype: torch.dtype, head: bool = False, check: bool = False
    ) -> None:
        """Loads everything outside the blocks: embeddings, final norm, rotary buffers; with `head` the
        output embeddings, too (a tied head comes with the embedding anyway). As `load_block`."""
        self._load(self._rest(head), device, dtype, check)

    def release_rest(self) -> None:
        """Puts everything outside the blocks back on meta."""
        self._release(self._rest(True))

    @contextmanager
    def loaded_rest(
        self, *, device: torch.device | str, dtype: torch.dtype, head: bool = False, check: bool = False
    ) -> Iterator[None]:
        """Everything outside the blocks in memory while the context lasts; as `load_rest`."""
        try:
            self.load_rest(device=device, dtype=dtype, head=head, check=check)
            yield
        finally:
            self.release_rest()

    @contextmanager
    def loaded_whole(self, *, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
        """The whole model in memory while the context lasts, output embeddings included."""
        try:
            for index in range(len(self.blocks)):
                self.load_block(index, device=device, dtype=dtype)
            with self.loaded_rest(device=device, dtype=dtype, head=True):
                yield
        finally:
            for index in range(len(self.blocks)):
                self.release_block(index)

    def fused_groups(self, views: Iterable[WeightView]) -> list[tuple[WeightView, ...]]:
        """Those of the given views that servers fuse into one layer, and so must share one scheme: linears
        of one parent module that read the same input (q/k/v, gate/up), the gate and up projections of all
        experts of a module, and its down projections. Only groups of two or more are returned, in the order
        of the views.
        """
        groups: dict[object, list[WeightView]] = {}
        for view in views:
            if view.kind == "expert":
                groups.setdefault((view.parameter.rpartition(".")[0], view.parameter), []).append(view)
            elif view.module in self.flow.groups:
                groups.setdefault(self.flow.groups[view.module], []).append(view)
        return [tuple(group) for group in groups.values() if len(group) > 1]

    def stages(self, index: int) -> list[tuple[WeightView, ...]]:
        """The views of a block in the order in which data meets them; those of one stage do not feed each other."""
        stages: dict[tuple[bool, object], list[WeightView]] = {}
        for view in self.block_views(index):
            # Experts come behind the router and the attention, their gate and up before their down projection.
            key = view.parameter if view.kind == "expert" else self.flow.groups.get(view.module, -1)
            stages.setdefault((view.kind == "expert", key), []).append(view)
        linears = sorted((key for key in stages if not key[0]), key=lambda key: int(str(key[1])))
        return [tuple(stages[key]) for key in (*linears, *(key for key in stages if key[0]))]

    def _names(self, index: int) -> list[str]:
        prefix = self.blocks[index] + "."
        return [name for name in self._meta if name.startswith(prefix)]

    def _rest(self, head: bool) -> list[str]:
        output = self.model.get_output_embeddings()
        skipped = set() if head or output is None else {id(p) for p in output.parameters(recurse=False)}
        left_out = {n for n, p in self.model.named_parameters(remove_duplicate=False) if id(p) in skipped}
        left_out -= set(self.tied) | set(self.tied.values())
        return [n for n in self._meta if n not in left_out and block_of(n, self.blocks) is None]

    def _load(
        self,
        names: list[str],
        device: torch.device | str,
        dtype: torch.dtype,
        check: bool,
        mapped: bool = False,
    ) -> None:
        loader = Loader(
            self.source, self.model, self._disk, self.views, self._decode, torch.device(device), dtype, mapped
        )
        set_dtype(self.model, dtype)
        wanted = [name for name in names if name not in self.tied]
        for name, tensor in loader.load(wanted, self._meta):
            if check:
                self._check(name, tensor)
            self._set(name, tensor)
        for target, origin in self.tied.items():
            if target in names or origin in names:
                self._tie(target, origin)
        owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
        with_buffers = [name for name in owners if own_buffers(self.model.get_submodule(name))]
        compute_buffers(self.model, with_buffers, self._meta, device=torch.device(device), dtype=dtype)

    def _check(self, name: str, tensor: Tensor) -> None:
        pieces = self._disk.pieces.get(name, ())
        for piece in pieces:
            check_finite(piece.place(tensor), piece.disk)
        if not pieces:
            check_finite(tensor, name)

    def _release(self, names: Iterable[str]) -> None:
        for name in names:
            owner, leaf = self._place(name)
            table = owner._parameters if leaf in owner._parameters else owner._buffers
            table[leaf] = self._meta[name]  # type: ignore[assignment]

    def _place(self, name: str) -> tuple[nn.Module, str]:
        owner, _, leaf = name.rpartition(".")
        return self.model.get_submodule(owner), leaf

    def _set(self, name: str, tensor: Tensor) -> None:
        owner, leaf = self._place(name)
        if leaf in owner._parameters:
            parameter = nn.Parameter(tensor, requires_grad=False)
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' mark: leave it as it is
            owner._parameters[leaf] = parameter
        else:
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
            owner._buffers[leaf] = tensor

    def _tie(self, target: str, origin: str) -> None:
        (owner, leaf), (origin_owner, origin_leaf) = self._place(target), self._place(origin)
        owner._parameters[leaf] = origin_owner._parameters[origin_leaf]


open_skeleton = Skeleton.open_skeleton


def _check_missing(
    model: PreTrainedModel, source: Source, disk: DiskMap, views: Sequence[WeightView], supplied: set[str]
) -> None:
    by_parameter: dict[str, list[str]] = {}
    for view in views:
        by_parameter.setdefault(view.parameter, []).append(view.name)
    for name in missing(model, disk):
        origin = disk.tied.get(name, name)
        views_of = by_parameter.get(origin, [])
        if views_of and all(view in supplied or f"{view}.weight" in source.headers for view in views_of):
            continue
        raise UserError(
            f"{source.path} holds no tensor for {name}, which the model that config.json describes needs."
        )


def _own_dtype(model: PreTrainedModel, source: Source) -> torch.dtype:
    """What the configuration says, or what most numbers on disk are of."""
    said = model.config.get_text_config().dtype or model.config.dtype
    said = getattr(torch, said.removeprefix("torch."), None) if isinstance(said, str) else said
    if isinstance(said, torch.dtype) and said in COMPUTED_IN:
        return said
    sizes: dict[torch.dtype, int] = {}
    for info in source.headers.values():
        if info.dtype in (torch.bfloat16, torch.float16, torch.float32):
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
