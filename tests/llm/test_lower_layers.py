"""What lower layers without adapters say of a row is computed once, and changes no bit of what is scored."""

from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from recalign.llm import lower_layers
from recalign.llm.lower_layers import LowerStates, middle
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.training.examples import TextExample
from recalign.training.sft import LanguageModelling

DEPTH = 4


def adapted(family: str, first: int, seed: int = 1) -> torch.nn.Module:
    """A model of four layers with LoRA from layer `first` on, its factors drawn from `seed`."""
    base = tiny.model(family, num_hidden_layers=DEPTH)
    upper = list(range(first, DEPTH))
    targets = ["q_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, layers_to_transform=upper, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=drawn))
    return model.eval()


def scored(model: torch.nn.Module, states: LowerStates | None, case=None) -> tuple[torch.Tensor, int]:
    """Sums, and how often the lowest layer's attention ran."""
    prompts, responses = case or tiny.scoring_case()
    calls = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = base.get_decoder().layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with torch.inference_mode():
            if states is None:
                return response_logprobs(model, prompts, responses).sums, len(calls)
            with states.used(model, "base", prompts, responses):
                return response_logprobs(model, prompts, responses).sums, len(calls)
    finally:
        handle.remove()


@pytest.mark.parametrize("kept", ["memory", "folder"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_two_adapters_share_what_their_lower_layers_say(tmp_path: Path, family: str, kept: str) -> None:
    first, second = adapted(family, 2, seed=1), adapted(family, 2, seed=2)
    states = LowerStates(tmp_path / "lower" if kept == "folder" else None)
    assert middle(first) is not None
    assert middle(second) is not None
    plain = scored(first, None)[0], scored(second, None)[0]
    assert not torch.equal(*plain)

    sums, calls = scored(first, states)
    assert torch.equal(sums, plain[0])
    assert calls == 1
    for model, wanted in ((second, plain[1]), (first, plain[0])):
        sums, calls = scored(model, states)
        assert torch.equal(sums, wanted)
        assert calls == 0
    assert len(list(tmp_path.glob("lower/*"))) == (1 if kept == "folder" else 0)
    assert torch.equal(scored(second, None)[0], plain[1])  # the layers run again afterwards


def test_another_row_another_base_and_a_damaged_file_are_computed(tmp_path: Path) -> None:
    model, states = adapted("llama", 2), LowerStates(tmp_path)
    plain = scored(model, None)[0]
    scored(model, states)
    assert scored(model, states, tiny.scoring_case(seed=5))[1] == 1
    with torch.inference_mode(), states.used(model, "another base", *tiny.scoring_case()):
        response_logprobs(model, *tiny.scoring_case())
    assert len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        file.write_bytes(b"cut short")
    sums, calls = scored(model, states)
    assert torch.equal(sums, plain)
    assert calls == 1


def test_nothing_is_reused_under_an_adapter_on_all_layers_or_with_gradients() -> None:
    states = LowerStates()
    low, model = adapted("llama", 1), adapted("llama", 2)
    assert middle(low) is None
    assert [scored(low, states)[1] for _ in range(2)] == [1, 1]
    scored(model, states)
    with states.used(model, "base", *tiny.scoring_case()):
        sums = response_logprobs(model, *tiny.scoring_case()).sums
    assert sums.requires_grad


def test_no_more_is_kept_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_layers, "MOST_BYTES", 100)
    model = adapted("llama", 2)
    assert middle(model) is not None
    for states in (LowerStates(), LowerStates(tmp_path)):
        assert [scored(model, states)[1] for _ in range(2)] == [1, 1]
    assert list(tmp_path.iterdir()) == []


def test_validation_reads_its_examples_lower_layers_once() -> None:
    model = adapted("llama", 2)
    examples = [TextExample(f"e{n}", [3, 4, 5 + n], [6, 7, 8]) for n in range(4)]
    task, calls = LanguageModelling(model, examples, micro_tokens=12), []
    assert middle(model) is not None
    layer = model.get_base_model().get_decoder().layers[0].self_attn
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    first = task.validate()
    passes = len(calls)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.mul_(3.0)
    second = task.validate()
    assert passes >= 2
    assert len(calls) == passes
    fresh = LanguageModelling(model, examples, micro_tokens=12).validate()
    assert second == fresh != first
