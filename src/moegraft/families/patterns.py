"""Naming patterns that many families share, as functions that return rules."""

from moegraft.families.names import Rule

LAYER = "{root}layers.{layer}."
"""How the name of every decoder layer's tensor begins."""


def in_layer(component: str, prefix: str, *parts: str, leaf: str = ".{leaf}") -> tuple[Rule, ...]:
    """One rule per part of a decoder layer: its name is its role.

    Args:
        component: the component that owns all of them.
        prefix: module path inside the layer, with its trailing dot, e.g. `self_attn.`.
        parts: submodule names, e.g. `q_proj`.
        leaf: how the name ends; empty where the part itself is the parameter.
    """
    return tuple(Rule(f"{LAYER}{prefix}{part}{leaf}", component, (part,)) for part in parts)


def outer(final_norm: str = "norm") -> tuple[Rule, ...]:
    """Embedding, final norm and head, and the rotary tables that old files still carry."""
    return (
        Rule("{root}embed_tokens.{leaf}", "embedding", ("embed_tokens",)),
        Rule(f"{{root}}{final_norm}.{{leaf}}", "norm", ("final_norm",)),
        Rule("lm_head.{leaf}", "lm_head", ("lm_head",)),
        Rule("{root}rotary_emb.{any}", "extra", ("rotary_emb",)),
        Rule(f"{LAYER}self_attn.rotary_emb.{{any}}", "extra", ("rotary_emb",)),
    )


def attention(*, qk_norm: bool = False) -> tuple[Rule, ...]:
    """Multi-head or grouped-query attention, with or without norms on queries and keys."""
    projections = in_layer("attention", "self_attn.", "q_proj", "k_proj", "v_proj", "o_proj")
    norms = in_layer("qk_norm", "self_attn.", "q_norm", "k_norm") if qk_norm else ()
    return (*projections, *norms)


def latent_attention() -> tuple[Rule, ...]:
    """Multi-head latent attention; its low-rank norms belong to attention."""
    return in_layer(
        "attention",
        "self_attn.",
        *("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj"),
        *("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"),
    )


def ffn(component: str, prefix: str) -> tuple[Rule, ...]:
    """A gated FFN below `prefix`; its roles `gate up down` are those of an expert."""
    return tuple(
        Rule(f"{LAYER}{prefix}{role}_proj.{{leaf}}", component, (role,))
        for role in ("gate", "up", "down")
    )


def experts(module: str, *, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Routed experts below `module`, published one by one and fused.

    Args:
        module: path inside the layer, e.g. `mlp.experts`.
        gate: name of one expert's gate projection on disk.
        up: name of its up projection.
        down: name of its down projection.
    """
    names = {"gate": gate, "up": up, "down": down}
    published = (
        Rule(f"{LAYER}{module}.{{expert}}.{name}.{{leaf}}", "experts", (role,))
        for role, name in names.items()
    )
    return (*published, *fused_experts(module))


def fused_experts(module: str) -> tuple[Rule, ...]:
    """Experts as transformers v5 runs them: `gate_up_proj` [E, 2F, D], `down_proj` [E, D, F]."""
    suffixes = {"": "weight", "_scale_inv": "weight_scale_inv"}
    return tuple(
        Rule(
            f"{LAYER}{module}.{name}{suffix}",
            "experts",
            tuple(f"{role}.{leaf}" for role in roles),
            stacked=True,
        )
        for suffix, leaf in suffixes.items()
        for name, roles in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",)))
    )


def correction_bias() -> tuple[Rule, ...]:
    """The bias that balances a sigmoid router; part of the router."""
    return in_layer("router", "mlp.gate.", "e_score_correction_bias", leaf="")


def prediction_layers() -> tuple[Rule, ...]:
    """What a multi-token-prediction layer has beside an ordinary layer's tensors."""
    parts = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")
    return in_layer("extra", "", *parts)
