"""Device maps: what stands where, how a model runs in pieces, and what is refused."""

import pytest
import torch
from torch import nn

from moegraft.errors import RecipeError, ResourceError
from moegraft.runtime import Host, Patch, fit
from moegraft.runtime.placement import (
    Placement,
    blocks,
    connect,
    find_device,
    parse_device_map,
    place,
    spread,
)
from moegraft.runtime.swap import slots
from moegraft.transfer.live import configuration_patches
from tiny_families import TINY, build_tiny

CPU, META = torch.device("cpu"), torch.device("meta")
GPUS = [torch.device("cuda", i) for i in range(4)]
HALVES = {
    "model.embed_tokens": "cuda:0",
    "model.layers.0": "cuda:0",
    "model.layers.1": "cuda:1",
    "model.norm": "cuda:1",
    "model.rotary_emb": "cuda:1",
    "lm_head": "cuda:1",
}


def _logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def _pieces(device_map):
    return dict.fromkeys(device_map, "cpu")


@pytest.mark.parametrize("family", TINY)
def test_every_tensor_lies_in_one_block_and_layers_stay_whole(family):
    model = build_tiny(family)
    placement = place(model, {"": CPU})
    names = [*slots(model), *(name for name, _ in model.named_buffers())]
    assert {placement.device_of(name) for name in names} == {CPU}
    known = blocks(model)
    assert "lm_head" in known
    assert [name for name in known if ".layers." in name] == [
        name for name in known if name.rpartition(".")[0].endswith("layers")
    ]
    assert len([name for name in known if ".layers." in name]) == len(
        {name.split("layers.")[1].split(".")[0] for name in names if ".layers." in name}
    )


def test_a_host_in_pieces_computes_and_swaps_as_one_in_a_piece(olmoe_pair, ids):
    sources = str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}
    whole = Host.load(*sources, device="cpu")
    pieces = Host.load(*sources, device_map=_pieces(HALVES))
    assert (whole.device_map, pieces.device_map) == (None, _pieces(HALVES))
    connect_anyway(pieces.model, pieces.placement)
    for configuration in ("host", "donor", "attention", "router+experts"):
        found = []
        for host in (whole, pieces):
            with host.with_patches(configuration_patches(host, configuration)) as model:
                found.append(_logits(model, ids))
        assert torch.equal(*found), configuration


def connect_anyway(model, placement):
    """Hooks as on several devices, here all of them the CPU."""
    two = Placement({**placement.by_module, "nowhere": META})
    model.nowhere = nn.Identity()
    connect(model, two)
    assert len(model.lm_head._forward_pre_hooks) == 1


def test_donors_stand_where_the_host_does_in_both_modes(olmoe_pair):
    sources = str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}
    planned = {name: "meta" if device == "cuda:1" else "cpu" for name, device in HALVES.items()}
    resident = Host.load(*sources, device_map=planned)
    largest = max(part.tensor_bytes for part in resident.memory.by_device)
    streamed = Host.load(*sources, device_map=planned, memory_budget_bytes=int(0.9 * largest))
    assert (resident.memory.mode, streamed.memory.mode) == ("resident", "streamed")
    for host in (resident, streamed):
        assert host.devices == (CPU, META)
        assert host.device == CPU
        for name in host.parameter_names():
            expected = torch.device(
                planned[".".join(name.split(".")[: 3 if "layers" in name else -1])]
            )
            assert host.parameter(name).device == expected
            assert host.donor_parameter("donor", name).device == expected
        for patch in host.donor_patches("donor"):
            assert patch.load().device == host.parameter(patch.parameter).device
    with resident.with_patches(resident.donor_patches("donor")) as model:
        assert {p.device for p in model.model.layers[1].parameters()} == {META}
        assert {p.device for p in model.model.layers[0].parameters()} == {CPU}
    expert = Patch("model.layers.1.mlp.experts.down_proj", torch.zeros(32, 16, device=META), 3)
    with resident.with_patches([expert]) as model:
        assert model.model.layers[1].mlp.experts.down_proj.device == META


def test_a_tied_donor_of_an_untied_host_stands_on_both_devices(make_olmoe, tmp_path, olmoe_pair):
    tied = str(make_olmoe(tmp_path / "tied", seed=7, tie_word_embeddings=True))
    planned = {"": "cpu", "lm_head": "meta"}
    host = Host.load(str(olmoe_pair[0]), {"donor": tied}, device_map=planned)
    assert host.donor_parameter("donor", "model.embed_tokens.weight").device == CPU
    assert host.donor_parameter("donor", "lm_head.weight").device == META
    assert host.memory.by_device[1].donor_bytes == 128 * 32 * 4


def test_what_a_block_is_called_with_is_brought_to_its_device():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    seen = {}

    def look(module, args, kwargs):
        seen.update(kwargs)

    model[1].register_forward_pre_hook(look, with_kwargs=True)
    with pytest.raises(RuntimeError, match="meta"):
        model(torch.zeros(1, 4))
    connect(model, place(model, {"0": CPU, "1": META}))
    assert model(torch.zeros(1, 4)).device == META
    cache = object()
    model[1].forward = lambda hidden, **kwargs: hidden
    given = {"mask": {"full": torch.zeros(1)}, "rope": (torch.zeros(1), None), "cache": cache}
    model[1](torch.zeros(1, 4), **given)
    seen.clear()
    model[1].register_forward_pre_hook(look, with_kwargs=True)
    model[1](torch.zeros(1, 4), **given)
    assert seen["mask"]["full"].device == seen["rope"][0].device == META
    assert seen["cache"] is cache


def test_the_estimate_is_made_for_each_device_without_having_them(olmoe_pair):
    sources = str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}
    whole = fit.estimate_memory(*sources)
    apart = fit.estimate_memory(*sources, device_map=HALVES)
    assert [part.device for part in apart.by_device] == ["cuda:0", "cuda:1"]
    assert apart.tensor_bytes == whole.tensor_bytes
    assert apart.process_bytes == 0
    head, norm, embedding = 128 * 32 * 4, 32 * 4, 128 * 32 * 4
    layers = (whole.host_bytes - head - norm - embedding) // 2
    assert [part.host_bytes for part in apart.by_device] == [
        embedding + layers,
        layers + norm + head,
    ]
    streamed = fit.estimate_memory(*sources, "streamed", device_map=HALVES)
    assert [part.transient_bytes for part in streamed.by_device] == [8 * 32 * 32 * 4] * 2


def test_spreading_evenly_keeps_the_fullest_device_as_empty_as_possible():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(8)))
    sizes = {f"{i}.weight": 10 for i in range(8)}
    room = dict.fromkeys(GPUS, 100)
    even = spread(model, sizes, room, evenly=True)
    assert [even.device_of(str(i)).index for i in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    full = spread(model, sizes, dict.fromkeys(GPUS, 50), evenly=False)
    assert [full.device_of(str(i)).index for i in range(8)] == [0, 0, 0, 0, 0, 1, 1, 1]
    uneven = spread(model, sizes, dict(zip(GPUS, (10, 100, 30, 100), strict=True)), evenly=True)
    assert [uneven.device_of(str(i)).index for i in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]
    assert spread(model, sizes, dict.fromkeys(GPUS, 19), evenly=True) is None


def test_a_tied_head_goes_where_the_embedding_is(make_olmoe, tmp_path):
    path = str(make_olmoe(tmp_path / "tied", tie_word_embeddings=True))
    sources = fit.prepare(path, {}, dtype="auto", experts="eager")
    placed = spread(
        sources.model, sources.num_bytes("resident"), dict.fromkeys(GPUS, 10**9), evenly=True
    )
    assert len(placed.devices) > 1
    assert placed.device_of("lm_head") == placed.device_of("model.embed_tokens")
    with pytest.raises(RecipeError, match=r"model.embed_tokens and lm_head share a tensor.*cuda:1"):
        fit.settle(sources, parse_device_map(HALVES), None)


@pytest.mark.parametrize("name", ["auto", "balanced", "sequential"])
def test_a_named_map_is_worked_out_here_and_falls_back_to_one_model(olmoe_pair, ids, name):
    sources = str(olmoe_pair[0]), {"donor": str(olmoe_pair[1])}
    host = Host.load(*sources, device_map=name)
    assert set(host.device_map.values()) == {str(host.device)}
    budget = int(1.7 * host.memory.host_bytes)
    small = Host.load(*sources, device_map=name, memory_budget_bytes=budget)
    assert small.memory.mode == "streamed"
    with pytest.raises(ResourceError, match=r"too little for the .* of tensors of the host alone"):
        Host.load(*sources, device_map=name, memory_budget_bytes=host.memory.host_bytes // 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("evenly", "device map 'evenly': expected auto, balanced, sequential"),
        ({"": "disk"}, "the model on disk: nothing is offloaded"),
        ({"lm_head": "gpu9"}, "lm_head on 'gpu9', which is no device"),
        ({"": "cpu", "model.layer.0": "cpu"}, "no module 'model.layer.0'; the nearest is 'model.l"),
        ({"": "cpu", "model.layers.0.mlp": "cpu"}, "mlp is a part of model.layers.0, which stays"),
        ({"model": "cpu"}, "nothing says where lm_head is"),
    ],
)
def test_maps_that_do_not_fit_are_refused(olmoe_pair, given, message):
    with pytest.raises(RecipeError, match=message):
        Host.load(str(olmoe_pair[0]), {}, device_map=given)


def test_a_map_beside_a_device_and_a_gpu_that_is_not_here_are_refused(olmoe_pair):
    with pytest.raises(RecipeError, match="device 'cpu' and a device map: give one of them"):
        Host.load(str(olmoe_pair[0]), {}, device="cpu", device_map="auto")
    with pytest.raises(RecipeError, match=r"no cuda:63 here: \d+ GPUs are visible"):
        Host.load(str(olmoe_pair[0]), {}, device_map={"": 63})


def test_a_device_is_one_that_computes_here():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name, message in (
        ("nowhere", "device 'nowhere': expected auto, cpu, cuda or cuda:N"),
        ("meta", "device 'meta': cannot be computed on here; expected auto, cpu"),
        ("cuda:63", r"no cuda:63 here: \d+ GPUs are visible"),
    ):
        with pytest.raises(RecipeError, match=message):
            find_device(name)
