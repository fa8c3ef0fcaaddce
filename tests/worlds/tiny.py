"""Tiny random models of many families, their tokenizer and a small catalogue: made by code, offline."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from recalign.data.records import Items
from recalign.llm.model.random_models import tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 2,
    "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", SIZES),
    "mistral": ("mistral", SIZES | {"sliding_window": None}),
    "mistral-window": ("mistral", SIZES | {"sliding_window": 12}),
    "phi3": ("phi3", SIZES),
    "gemma": ("gemma", SIZES),
    "gemma3": ("gemma3_text", SIZES | {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt2": ("gpt2", {"vocab_size": 640, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512,
                      "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "opt": ("opt", {"vocab_size": 640, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2,
                    "num_attention_heads": 4, "max_position_embeddings": 512, "word_embed_proj_dim": 64,
                    "dropout": 0.0, "attention_dropout": 0.0, "pad_token_id": 1}),
    "gpt-neox": ("gpt_neox", {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}),
    "olmo2": ("olmo2", SIZES),
    "smollm3": ("smollm3", SIZES | {"no_rope_layers": [1, 0]}),  # its second layer looks at no positions at all
    "phi": ("phi", SIZES | {"resid_pdrop": 0.0, "embd_pdrop": 0.0}),  # its head has a bias
    "granite": ("granite", SIZES | {"logits_scaling": 4.0}),
    "gemma3-cap": ("gemma3_text", SIZES | {"sliding_window": 12, "layer_types": ["sliding_attention"] * 2,
                                           "final_logit_softcapping": 0.5}),
    "qwen3-moe": ("qwen3_moe", SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    # the ones below cannot share a prompt
    "gemma2": ("gemma2", SIZES | {"attn_logit_softcapping": 5.0, "layer_types": ["full_attention"] * 2}),
    "bloom": ("bloom", {"vocab_size": 640, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"vocab_size": 640, "d_model": 64, "n_layers": 2, "n_heads": 4}),
    "qwen3-next": ("qwen3_next", SIZES | {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4,
                                          "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                                          "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2,
                                          "linear_num_value_heads": 2, "linear_key_head_dim": 16,
                                          "linear_value_head_dim": 16}),
    "mamba": ("mamba", {"vocab_size": 640, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}  # fmt: skip
ALONE = ["gemma2", "bloom", "mpt", "qwen3-next", "mamba"]
SHARING = [name for name in FAMILIES if name not in ALONE]


def model(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random fp32 model in eval mode; weights are large enough for log-probs of responses to differ clearly.

    changes: entries of its configuration.
    """
    kind, sizes = FAMILIES[family]
    sizes = sizes | changes
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes)).float().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "wte" not in name:
                parameter.mul_(4.0)
    return built


def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def items(titles: list[str] | None = None) -> Items:
    """A catalogue whose ids are 1, 2, …; by default ten invented films."""
    words = ["House", "Secret", "Last", "Winter", "Return", "King", "Story", "Fall", "Legend", "Heart"]
    titles = titles or [f"The {word} of Night (19{80 + n})" for n, word in enumerate(words)]
    ids = tuple(range(1, len(titles) + 1))
    return Items(ids, dict(zip(ids, titles, strict=True)), {i: {"genre": ["drama"]} for i in ids}, {i: i for i in ids})


def scoring_case(seed: int = 0, *, vocabulary: int = 640) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Three prompts and ragged groups of responses, ids below `vocabulary`; the shortest have one token."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, vocabulary, (n,), generator=generator).tolist()

    prompts = [ids(20), ids(1), ids(33)]
    return prompts, [[ids(4), ids(1), ids(6)], [ids(3)], [ids(7), ids(2), ids(5), ids(5)]]


def nested_case() -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts along one history (the second begins the first, the third is the first again) and one of its own.

    The response of the shorter prompt begins as the longer prompt goes on: whoever looks ahead gains by it.
    """
    prompts, responses = scoring_case()
    long, ahead = prompts[2], prompts[2][12:15]
    return [long, long[:12], long, prompts[0]], [responses[2], [ahead, *responses[0]], responses[1], responses[0]]
