"""No architecture is scored otherwise than one by one without a word: each is checked before it is used."""

import logging
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from recalign.common.artifacts import write_json
from recalign.common.errors import RecalignError
from recalign.llm.model import random_models
from recalign.llm.model.base import load_language_model
from recalign.llm.scoring import logprobs, packing
from recalign.llm.scoring.logprobs import Way, one_by_one_logprobs, response_logprobs, tokens_at_once, verdict_of
from recalign.params.load import load_params
from recalign.params.lora import LoraParams

ROOT = Path(__file__).parents[2]
BASE = load_params(ROOT / "params.yaml").base.model_copy(update={"compute": "fp32", "quantisation": "none"})
LORA = LoraParams(rank=4, alpha=8.0, dropout=0.0, targets="all-linear")
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SMALL = tiny.SIZES | {"max_position_embeddings": 128}
BERT = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")} | {
    "num_attention_heads": 4, "max_position_embeddings": 128, "is_decoder": True,
}  # fmt: skip
# each hides something else from a packed row: its layout, a window, positions, sinks; or padding shows in a batch
ODD: dict[str, tuple[str, dict[str, Any], Way | None, str]] = {  # None: refused
    "nemotron": ("nemotron", SMALL, Way.BATCHED, "is called without the layout of the row"),
    "phimoe": ("phimoe", SMALL | {"num_local_experts": 4, "sliding_window": 6}, Way.BATCHED, "differ by"),
    "qwen2-moe": (
        "qwen2_moe", SMALL | EXPERTS | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0,
                                        "layer_types": ["sliding_attention"] * 2,
                                        "shared_expert_intermediate_size": 32}, Way.BATCHED, "differ by",
    ),
    "doge": ("doge", SMALL | {"sliding_window": 8}, Way.BATCHED, "differ by"),
    "roberta": ("roberta", BERT | {"max_position_embeddings": 130}, Way.BATCHED, "differ by"),
    "gpt-oss": ("gpt_oss", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}, Way.BATCHED, "s_aux"),
    "prophetnet": (
        "prophetnet", {"vocab_size": 640, "hidden_size": 64, "decoder_ffn_dim": 96, "encoder_ffn_dim": 96,
                       "num_encoder_layers": 1, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
                       "num_decoder_attention_heads": 4, "is_decoder": True}, None, "tokens look at later ones",
    ),
    "llama": ("llama", SMALL, Way.SHARED, ""),
}  # fmt: skip


def build(kind: str, sizes: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes)).float().eval()
    random_models._scale(model)
    random_models.silence(model)
    return model


@pytest.mark.parametrize("name", ODD)
def test_an_architecture_is_scored_like_one_by_one_or_refused_and_the_log_says_why(name, caplog):
    kind, sizes, way, reason = ODD[name]
    model = build(kind, sizes)
    prompts, responses = tiny.scoring_case()
    if way is None:
        with pytest.raises(RecalignError, match=reason):
            response_logprobs(model, prompts, responses)
        return
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="recalign"):
        scored = response_logprobs(model, prompts, responses)
        alone = one_by_one_logprobs(model, prompts, responses)
    assert (scored.sums - alone.sums).abs().max() < 1e-3
    assert scored.lengths.tolist() == alone.lengths.tolist()
    said = [record.message for record in caplog.records if record.name == "recalign.llm.scoring.logprobs"]
    assert len(said) == 1
    assert said[0].startswith("scoring ")
    assert reason in said[0]
    assert verdict_of(model).way == way


def test_a_model_whose_padded_batches_are_off_is_scored_one_by_one(monkeypatch):
    """Here every batch is: what is added to a row depends on how much of it is filled."""
    model = tiny.model("bloom")
    real = model.forward

    def padded(*given, attention_mask=None, **named):
        out = real(*given, attention_mask=attention_mask, **named)
        out.logits = out.logits * (1 + (attention_mask == 0).sum())
        return out

    monkeypatch.setattr(type(model), "forward", lambda self, *given, **named: padded(*given, **named))
    prompts, responses = tiny.scoring_case()
    found = logprobs.compare(
        model, (prompts, responses), gradient=False, limit=lambda sums: torch.full_like(sums, 1e-3)
    )
    assert found.way == Way.ALONE
    assert "padded batches differ by" in found.sentence
    assert found.sentence.startswith("scoring one by one: ")


def test_a_model_whose_tokens_look_ahead_is_refused_by_name():
    """BERT as it is shipped: no decoder. Sums of its log-probs are no probabilities."""
    model = build("bert", BERT | {"is_decoder": False})
    with pytest.raises(RecalignError, match=r"BertLMHeadModel whose tokens look at later ones.*choose a causal"):
        response_logprobs(model, *tiny.scoring_case())


def test_a_difference_on_the_models_own_weights_counts_too(monkeypatch):
    """The twin passes; the weights do not: then one by one, with the reason."""
    real = logprobs.SCORERS[Way.SHARED]

    def off(model, prompts, responses):
        scored = real(model, prompts, responses)
        return replace(scored, sums=scored.sums + 0.01)

    model = tiny.model()
    monkeypatch.setattr(logprobs, "_on_twin", lambda base: logprobs.Verdict(Way.SHARED, {}, 0.0))
    monkeypatch.setitem(logprobs.SCORERS, Way.SHARED, off)
    found = verdict_of(model)
    assert (found.way, "on its own weights" in found.sentence) == (Way.ALONE, True)
    prompts, responses = tiny.scoring_case()
    assert tokens_at_once(model, prompts, responses) > sum(map(len, prompts))


def test_a_model_without_a_twin_is_scored_one_by_one(monkeypatch):
    monkeypatch.setattr(logprobs, "_twins", {})
    monkeypatch.setattr(logprobs, "twin_of", lambda base: None)
    found = verdict_of(tiny.model())
    assert found.sentence == (
        "scoring one by one: no small twin of LlamaForCausalLM's configuration could be built to check the others on"
    )


def test_attention_without_a_layout_in_a_packed_row_is_an_error():
    query = torch.zeros(1, 2, 4, 8)
    with packing.packed_row(), pytest.raises(packing.LayoutLost, match="Linear is called without the layout"):
        packing.shared_prefix_attention(torch.nn.Linear(1, 1), query, query, query, None)


def test_the_check_draws_no_random_numbers_and_works_where_no_gradient_is_wanted():
    model = tiny.model(max_position_embeddings=301)  # a configuration that no other test has: its twin is built here
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.inference_mode():
        assert verdict_of(model).way == Way.SHARED
    assert torch.equal(torch.rand(3), expected)


def test_a_twin_keeps_a_layer_of_each_kind_and_cuts_the_window():
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 2
    large = {"num_hidden_layers": 12, "sliding_window": 512, "layer_types": kinds}
    config = CONFIG_MAPPING["gemma3_text"](**SMALL | large)
    small = random_models.small_config(config)
    assert small.sliding_window == 8
    assert set(small.layer_types) == {"sliding_attention", "full_attention"}
    assert len(small.layer_types) == small.num_hidden_layers <= 6
    assert config.num_hidden_layers == 12, "the model's own configuration is left alone"


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_the_bases_own_dropout_is_off_in_training_and_loras_is_not(family, tmp_path):
    """Both ship with 0.1; a policy would differ from its reference before any step."""
    kind, sizes = tiny.FAMILIES[family]
    rates = {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1} if family == "gpt2" else {
        "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "layerdrop": 0.1,
    }  # fmt: skip
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes | rates)).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    write_json(tmp_path / "base.json", {"id": family, "revision": "1", "sha256": "0"})
    reference = load_language_model(tmp_path, BASE)
    policy = load_language_model(tmp_path, BASE, new_adapter=LORA, trainable=True)
    assert policy.model.training
    with torch.no_grad():
        expected = response_logprobs(reference.model, *tiny.scoring_case()).sums
        assert (response_logprobs(policy.model, *tiny.scoring_case()).sums - expected).abs().max() < 1e-4
    dropping = LORA.model_copy(update={"dropout": 0.5})
    dropped = load_language_model(tmp_path, BASE, new_adapter=dropping, trainable=True).model
    rates = {module.p for name, module in dropped.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == ({0.0, 0.5} if family == "gpt2" else {0.5})


def test_a_base_that_computes_something_else_in_training_is_refused_for_training_alone(tmp_path, monkeypatch):
    model = tiny.model()
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    write_json(tmp_path / "base.json", {"id": "odd", "revision": "1", "sha256": "0"})
    real = logprobs._on_twin
    monkeypatch.setattr(
        logprobs, "_on_twin", lambda base: logprobs.Verdict(real(base).way, {}, 0.0, "it draws experts")
    )
    load_language_model(tmp_path, BASE)
    with pytest.raises(RecalignError, match="'odd' cannot be trained to a preference: it draws experts"):
        load_language_model(tmp_path, BASE, new_adapter=LORA, trainable=True)


def test_the_way_is_part_of_a_models_digest(tmp_path, monkeypatch):
    """Log-probs of another way are not read."""
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    write_json(tmp_path / "base.json", {"id": "tiny", "revision": "1", "sha256": "0"})
    shared = load_language_model(tmp_path, BASE).digest
    monkeypatch.setattr(logprobs, "_on_twin", lambda base: logprobs.Verdict(Way.ALONE, {}, 0.0))
    assert load_language_model(tmp_path, BASE).digest != shared


@pytest.mark.slow
def test_every_type_of_transformers_is_scored_as_the_docs_say():
    """The table of docs/architectures.md, made anew: `python benchmarks/architectures.py` writes it."""
    made = runpy.run_path(str(ROOT / "benchmarks" / "architectures.py"))
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    rows = [made["row_of"](kind) for kind in made["kinds"]()]
    missing = [row.line for row in rows if f"| {row.kind} | {row.way} |" not in page]
    assert not missing, missing
