from moegraft.bar.cost import Sizes, merged_costs, sizes_of
from moegraft.checkpoint import open_checkpoint
from tiny_families import build_tiny


def test_the_published_models_sizes_come_out():
    """BAR-7B has 7,298,011,136 parameters; with four domains 24,612,753,408 (model cards)."""
    ffn = 32 * 3 * 4096 * 11008
    sizes = Sizes(
        outside=7_298_011_136 - ffn,
        lookup=100_278 * 4096,
        expert=ffn,
        router_row=32 * 4096,
        num_experts=0,
        top_k=0,
        bytes_per_parameter=2.0,
    )
    assert sizes.cost(1, 1).total == 7_298_011_136
    merged = sizes.cost(5, 5)
    assert merged.total == merged.active == 24_612_753_408
    assert merged.nbytes == 2 * 24_612_753_408
    assert merged.flops_per_token == 2 * (24_612_753_408 - 100_278 * 4096)


def test_sizes_are_those_of_the_live_model(tmp_path):
    for model_type in ("olmo2", "qwen3", "olmoe", "mixtral"):
        model = build_tiny(model_type)
        model.save_pretrained(tmp_path / model_type)
        found = sizes_of(open_checkpoint(tmp_path / model_type))
        experts = found.num_experts or 1
        assert found.cost(experts, experts).total == model.num_parameters()
        assert (found.lookup == 0) == model.config.tie_word_embeddings


def test_appending_to_a_moe_adds_memory_but_hardly_any_work(tmp_path):
    build_tiny("olmoe").save_pretrained(tmp_path / "host")
    costs = merged_costs(open_checkpoint(tmp_path / "host"), domains=3, appended=2)
    assert costs["num_experts"] == {"host": 4, "branch": 6, "merged": 10}
    added = 6 * (3 * 16 * 24 + 16) * 2
    assert costs["merged"]["total"] - costs["host"]["total"] == added
    assert costs["merged"]["active"] - costs["host"]["active"] == 6 * 16 * 2
