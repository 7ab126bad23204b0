"""The model found from itself: blocks, weights, their names on disk, and loading them part by part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.checkpoint.source import Source, open_source
from compress.errors import UserError
from compress.models import skeleton
from compress.models.skeleton import Skeleton, open_skeleton

TinyModel = Callable[..., Path]
FAMILIES = [
    "llama",
    "llama_tied",
    "qwen3",
    "mistral",
    "gemma3",
    "phi3",
    "gpt2",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
]
families = pytest.mark.parametrize("family", FAMILIES)
DTYPES = [torch.float32, torch.bfloat16]


def skeleton_of(folder: Path) -> Skeleton:
    return open_skeleton(open_source(folder))


def plain(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def everything(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


@families
def test_every_weight_is_a_view_or_listed(tiny_model: TinyModel, family: str) -> None:
    skeleton = skeleton_of(tiny_model(family))
    headers = skeleton.source.headers
    accounted = {name for view in skeleton.views for name in view.sources}
    assert accounted.isdisjoint(skeleton.unsupported)
    wide = {name for name, info in headers.items() if len(info.shape) > 1}
    assert wide == accounted | set(skeleton.unsupported)
    assert all(skeleton.unsupported.values())
    assert skeleton.extra == ()
    names = [view.name for view in skeleton.views]
    assert len(set(names)) == len(names)


@families
def test_views_hold_nearly_all_of_each_block(tiny_model: TinyModel, family: str) -> None:
    skeleton = skeleton_of(tiny_model(family))
    assert len(skeleton.blocks) == 2
    for index in range(2):
        total = sum(parameter.numel() for parameter in skeleton.block_module(index).parameters())
        seen = sum(view.shape[0] * view.shape[1] for view in skeleton.block_views(index))
        assert seen <= total
        assert seen >= 0.95 * total


@families
def test_views_of_a_parameter_cover_it_once(tiny_model: TinyModel, family: str) -> None:
    skeleton = skeleton_of(tiny_model(family))
    parameters = {view.parameter: skeleton.parameter_of(view) for view in skeleton.views}
    for name, parameter in parameters.items():
        counts = torch.zeros(parameter.shape)
        for view in skeleton.views:
            if view.parameter == name:
                assert view.get(counts).shape == view.shape
                view.put(counts, view.get(counts) + 1)
        assert bool((counts == 1).all())


@families
def test_put_of_get_changes_nothing(tiny_model: TinyModel, family: str) -> None:
    skeleton = skeleton_of(tiny_model(family))
    skeleton.load_block(0, device="cpu", dtype=torch.float32)
    for view in skeleton.block_views(0):
        parameter = skeleton.parameter_of(view)
        before = parameter.detach().clone()
        view.put(parameter, view.get(parameter).clone())
        assert torch.equal(parameter, before)
        view.put(parameter, torch.full(view.shape, 3.0))
        assert bool((view.get(parameter) == 3).all())
        assert (parameter == 3).sum() == view.shape[0] * view.shape[1]
        parameter.data.copy_(before)


@families
def test_views_are_what_disk_holds(tiny_model: TinyModel, family: str) -> None:
    """Wherever a disk tensor is one weight, that weight's view equals it (transposed for `Conv1D`)."""
    folder = tiny_model(family)
    skeleton, disk = skeleton_of(folder), load_file(folder / "model.safetensors")
    skeleton.load_rest(device="cpu", dtype=torch.bfloat16, head=True)
    for index in range(2):
        skeleton.load_block(index, device="cpu", dtype=torch.bfloat16)
    own = [view for view in skeleton.views if f"{view.name}.weight" in disk]
    assert own
    for view in own:
        tensor = disk[f"{view.name}.weight"]
        tensor = tensor.T if view.kind == "conv1d" else tensor
        assert torch.equal(view.get(skeleton.parameter_of(view)), tensor)
        assert view.sources == (f"{view.name}.weight",)


@families
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loads_what_transformers_loads(tiny_model: TinyModel, family: str, dtype: torch.dtype) -> None:
    folder = tiny_model(family)
    expected, skeleton = plain(folder, dtype), skeleton_of(folder)
    tokens = torch.arange(40).view(2, 20)
    skeleton.load_rest(device="cpu", dtype=dtype, head=True)
    for index, name in enumerate(skeleton.blocks):
        skeleton.load_block(index, device="cpu", dtype=dtype)
        found, wanted = everything(skeleton.block_module(index)), everything(expected.get_submodule(name))
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], tensor), key
    found, wanted = everything(skeleton.model), everything(expected)
    assert found.keys() == wanted.keys()
    assert all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key]) for key in wanted
    )
    with torch.no_grad():
        assert torch.equal(skeleton.model(tokens).logits, expected(tokens).logits)


@families
def test_released_blocks_are_on_meta_and_come_back(tiny_model: TinyModel, family: str) -> None:
    skeleton = skeleton_of(tiny_model(family))
    assert all(tensor.is_meta for tensor in everything(skeleton.model).values())
    skeleton.load_block(1, device="cpu", dtype=torch.float32)
    first = {name: tensor.clone() for name, tensor in everything(skeleton.block_module(1)).items()}
    others = everything(skeleton.model).keys() - {f"{skeleton.blocks[1]}.{name}" for name in first}
    assert all(everything(skeleton.model)[name].is_meta for name in others)
    for view in skeleton.block_views(1):
        view.put(skeleton.parameter_of(view), torch.zeros(view.shape))
    skeleton.release_block(1)
    assert all(tensor.is_meta for tensor in everything(skeleton.model).values())
    skeleton.load_block(1, device="cpu", dtype=torch.float32)
    again = everything(skeleton.block_module(1))
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_rest_without_head(tiny_model: TinyModel) -> None:
    skeleton = skeleton_of(tiny_model("llama"))
    skeleton.load_rest(device="cpu", dtype=torch.float32)
    assert skeleton.model.lm_head.weight.is_meta
    assert not skeleton.model.model.embed_tokens.weight.is_meta
    assert not skeleton.model.model.norm.weight.is_meta
    assert not skeleton.model.model.rotary_emb.inv_freq.is_meta
    skeleton.release_rest()
    assert all(tensor.is_meta for tensor in everything(skeleton.model).values())


def test_tied_head_is_one_parameter(tiny_model: TinyModel) -> None:
    skeleton = skeleton_of(tiny_model("llama_tied"))
    skeleton.load_rest(device="cpu", dtype=torch.float32)
    assert skeleton.model.lm_head.weight is skeleton.model.model.embed_tokens.weight
    (view,) = skeleton.block_views(None)
    assert (view.name, view.kind, view.tied) == ("model.embed_tokens", "embedding", ("lm_head",))


GROUPS: dict[str, list[set[str]]] = {
    "llama": [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}],
    "qwen3": [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}],
    "gemma3": [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}],
    "opt": [{"q_proj", "k_proj", "v_proj"}],
    "phi3": [],
    "gpt2": [],
    "gpt_neox": [],
    "mixtral": [{"q_proj", "k_proj", "v_proj"}, {"w1", "w3"}, {"w2"}],
    "qwen3_moe": [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}],
    "gpt_oss": [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}],
}


@pytest.mark.parametrize("family", GROUPS)
def test_fused_groups(tiny_model: TinyModel, family: str) -> None:
    skeleton = skeleton_of(tiny_model(family))
    groups = skeleton.fused_groups(skeleton.block_views(0))
    assert [{view.name.rpartition(".")[2] for view in group} for group in groups] == GROUPS[family]
    for group in groups:
        assert len({view.shape[1] for view in group}) == 1
        assert len(group) in (2, 3, 4, 8)


def test_groups_where_the_model_cannot_be_watched(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then linears of one parent with equally many input features are taken together: too careful, never wrong."""

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaModel.forward", refuse)
    skeleton = skeleton_of(tiny_model("llama"))
    groups = skeleton.fused_groups(skeleton.block_views(0))
    found = [{view.name.rpartition(".")[2] for view in group} for group in groups]
    assert found == [{"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj"}]


NAMES: dict[str, list[str]] = {
    "gpt2": ["transformer.h.1.attn.c_attn", "transformer.h.1.mlp.c_proj"],
    "phi3": ["model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"],
    "gpt_neox": ["gpt_neox.layers.0.attention.query_key_value", "embed_out"],
    "mixtral": [
        "model.layers.0.block_sparse_moe.experts.3.w1",
        "model.layers.1.block_sparse_moe.experts.0.w2",
    ],
    "qwen3_moe": ["model.layers.0.mlp.experts.3.gate_proj", "model.layers.1.mlp.experts.0.down_proj"],
    "gpt_oss": ["model.layers.0.mlp.experts.3.gate_proj", "model.layers.1.mlp.experts.0.down_proj"],
}


@pytest.mark.parametrize("family", NAMES)
def test_names_on_disk(tiny_model: TinyModel, family: str) -> None:
    assert set(NAMES[family]) <= {view.name for view in skeleton_of(tiny_model(family)).views}


def test_expert_views_do_what_the_module_does(tiny_model: TinyModel) -> None:
    """gpt-oss holds experts transposed, gate and up in turns: put together from its views, an expert is the same."""
    skeleton = skeleton_of(tiny_model("gpt_oss"))
    skeleton.load_block(0, device="cpu", dtype=torch.float32)
    experts = skeleton.block_module(0).mlp.experts
    weights = {
        view.name.rpartition(".")[2]: view.get(skeleton.parameter_of(view))
        for view in skeleton.block_views(0)
        if view.expert == 2
    }
    torch.manual_seed(0)
    x = torch.randn(5, 64)
    gate = x @ weights["gate_proj"].T + experts.gate_up_proj_bias[2, 0::2]
    up = x @ weights["up_proj"].T + experts.gate_up_proj_bias[2, 1::2]
    gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
    inner = (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
    expected = inner @ weights["down_proj"].T + experts.down_proj_bias[2]
    chosen = torch.full((5, 1), 2)
    with torch.no_grad():
        found = experts(x, chosen, torch.ones(5, 1))
    torch.testing.assert_close(found, expected)


@pytest.fixture
def rewrite(tiny_model: TinyModel, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny checkpoint with its tensors changed by a function."""

    def apply(
        family: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **config: object
    ) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny_model(family), folder)
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
            folder / "model.safetensors",
        )
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **config}))
        return folder

    return apply


@pytest.mark.parametrize(("family", "prefix"), [("llama_tied", "model."), ("gpt2", "transformer.")])
def test_saved_from_the_base_model(rewrite: Callable[..., Path], family: str, prefix: str) -> None:
    folder = rewrite(family, lambda tensors: {name.removeprefix(prefix): t for name, t in tensors.items()})
    skeleton = skeleton_of(folder)
    assert all(not view.name.startswith(prefix) for view in skeleton.views)
    assert all(view.parameter.startswith(prefix) for view in skeleton.views)
    expected = plain(folder, torch.float32)
    skeleton.load_rest(device="cpu", dtype=torch.float32, head=True)
    skeleton.load_block(0, device="cpu", dtype=torch.float32)
    skeleton.load_block(1, device="cpu", dtype=torch.float32)
    wanted = everything(expected)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in everything(skeleton.model).items())


def test_tied_head_on_disk_as_well(rewrite: Callable[..., Path]) -> None:
    folder = rewrite("llama_tied", lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    skeleton = skeleton_of(folder)
    (view,) = skeleton.block_views(None)
    assert view.sources == ("model.embed_tokens.weight", "lm_head.weight")
    assert skeleton.tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_tied_head_only_on_disk(rewrite: Callable[..., Path]) -> None:
    def only_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        return tensors

    skeleton = skeleton_of(rewrite("llama_tied", only_head))
    (view,) = skeleton.block_views(None)
    assert (view.name, view.sources) == ("lm_head", ("lm_head.weight",))
    skeleton.load_rest(device="cpu", dtype=torch.float32)
    assert skeleton.model.lm_head.weight is skeleton.model.model.embed_tokens.weight


def test_tied_in_the_config_but_not_on_disk(rewrite: Callable[..., Path]) -> None:
    folder = rewrite("llama_tied", lambda t: {**t, "lm_head.weight": -t["model.embed_tokens.weight"]})
    skeleton = skeleton_of(folder)
    assert skeleton.tied == {}
    assert {view.kind for view in skeleton.block_views(None)} == {"embedding", "head"}


def test_tensors_that_nothing_uses(rewrite: Callable[..., Path]) -> None:
    extra = {"mtp.0.proj.weight": torch.zeros(4, 4), "model.layers.2.mlp.up_proj.weight": torch.zeros(4, 4)}
    skeleton = skeleton_of(rewrite("llama", lambda tensors: {**tensors, **extra, "mtp.norm": torch.zeros(4)}))
    assert set(skeleton.extra) == {*extra, "mtp.norm"}
    assert skeleton.unsupported == dict.fromkeys(extra, "no parameter of the model uses it")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.norm.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama", "lm_head.weight"),
        ("llama_tied", "model.embed_tokens.weight"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj"),
    ],
)
def test_missing_tensor(rewrite: Callable[..., Path], family: str, name: str) -> None:
    folder = rewrite(family, lambda tensors: {key: t for key, t in tensors.items() if key != name})
    with pytest.raises(UserError, match=name):
        skeleton_of(folder)


def test_missing_expert(rewrite: Callable[..., Path]) -> None:
    gone = "model.layers.1.mlp.experts.2.up_proj.weight"
    folder = rewrite("qwen3_moe", lambda tensors: {key: t for key, t in tensors.items() if key != gone})
    with pytest.raises(UserError, match=r"missing.*3 like model\.layers\.1\.mlp\.experts\.0\.up_proj"):
        skeleton_of(folder)


def test_shape_that_does_not_fit(rewrite: Callable[..., Path]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = rewrite("llama", lambda tensors: {**tensors, name: torch.zeros(7, 64)})
    with pytest.raises(UserError, match=r"up_proj\.weight has shape \[7, 64\].*\[128, 64\]"):
        skeleton_of(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(rewrite: Callable[..., Path], value: float) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"

    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[name][3, 5] = value
        return tensors

    skeleton = skeleton_of(rewrite("llama", spoil))
    skeleton.load_block(0, device="cpu", dtype=torch.float32, check=True)
    with pytest.raises(UserError, match=name):
        skeleton.load_block(1, device="cpu", dtype=torch.float32, check=True)


def test_the_expert_with_no_numbers_is_named(rewrite: Callable[..., Path]) -> None:
    name = "model.layers.0.mlp.experts.2.up_proj.weight"
    folder = rewrite("qwen3_moe", lambda tensors: {**tensors, name: tensors[name] * float("nan")})
    with pytest.raises(UserError, match=name):
        skeleton_of(folder).load_block(0, device="cpu", dtype=torch.float32, check=True)


def test_unknown_model(rewrite: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no-such-model"):
        skeleton_of(rewrite("llama", lambda tensors: tensors, model_type="no-such-model"))


REMOTE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import LlamaConfig, LlamaForCausalLM
class TinyConfig(LlamaConfig):
    model_type = "tiny-remote"
class TinyModel(LlamaForCausalLM):
    config_class = TinyConfig
"""


def test_remote_code_only_when_asked_for(
    rewrite: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = {"AutoConfig": "code.TinyConfig", "AutoModelForCausalLM": "code.TinyModel"}
    folder = rewrite("llama", lambda tensors: tensors, model_type="tiny-remote", auto_map=places)
    (folder / "code.py").write_text(REMOTE)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(UserError, match="trust-remote-code"):
        skeleton_of(folder)
    assert not list(tmp_path.rglob("ran"))
    skeleton = open_skeleton(open_source(folder, trust_remote_code=True))
    assert type(skeleton.model).__name__ == "TinyModel"
    assert list(tmp_path.rglob("ran"))
    assert len(skeleton.views) == 2 + 2 * 7


@pytest.mark.parametrize("stated", [{"weights": "bfloat16"}, "float8_e4m3fn", "of its own", 7])
def test_a_dtype_that_nothing_computes_in_gives_way_to_that_of_the_tensors(
    stated: object, tiny_model: Callable[..., Path]
) -> None:
    source = open_source(tiny_model("llama"))
    model = open_skeleton(source).model
    model.config.dtype = stated
    largest = max(source.headers.values(), key=lambda info: info.nbytes).dtype
    assert skeleton._own_dtype(model, source) == largest


@families
def test_what_a_block_reads_of_the_files(
    tiny_model: TinyModel, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = skeleton_of(tiny_model(family))
    real, read = Source.read, set[str]()

    def noted(self: Source, name: str) -> torch.Tensor:
        read.add(name)
        return real(self, name)

    monkeypatch.setattr(Source, "read", noted)
    for index in range(2):
        read.clear()
        skeleton.load_block(index, device="cpu", dtype=torch.bfloat16)
        on_disk = [skeleton.source.headers[name] for name in read]
        assert sorted(info.offset for info in skeleton.block_on_disk(index)) == sorted(
            info.offset for info in on_disk
        )
