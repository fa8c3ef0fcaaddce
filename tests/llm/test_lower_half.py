"""What lower layers give is computed once for all adapters above them, and changes no log-prob and no gradient."""

import logging
import os

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from recalign.llm import lower_half
from recalign.llm.scoring import keep_lower_half, naive_logprobs, response_logprobs
from recalign.llm.ways import base_of

BASE = ["sha256 of the weights", "none", "fp32"]


def frozen(family: str = "llama", **changes):
    return tiny.model(family, **changes).requires_grad_(False)


def adapted(model, layers: list[int] | None, seed: int = 1):
    """LoRA on some layers (None: on all), with both factors non-zero."""
    upper = {} if layers is None else {"layers_to_transform": layers}
    linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    targets = ["c_attn", "c_fc"] if model.config.model_type == "gpt2" else sorted(linear - {"lm_head", "embed_out"})
    made = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **upper))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def calls(model) -> list[int]:
    """A list that grows by one wherever the first layer really computes."""
    counted: list[int] = []
    first, *_ = lower_half._layers(base_of(model))
    norm = next(module for module in first.modules() if "norm" in type(module).__name__.lower())
    norm.register_forward_hook(lambda *_: counted.append(1))
    return counted


def values(model, score=response_logprobs) -> torch.Tensor:
    with torch.no_grad():
        return score(model, *tiny.nested_case()).sums


def gradient(model) -> torch.Tensor:
    model.zero_grad()
    sums = response_logprobs(model, *tiny.nested_case()).sums
    (-torch.log_softmax(sums, dim=1)[:, 0].mean()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", tiny.SHARING)
def test_an_adapter_reads_what_the_base_computed_and_scores_and_learns_as_ever(family, tmp_path):
    base, tuned, alone = frozen(family), adapted(tiny.model(family), [1]), adapted(tiny.model(family), [1])
    keep_lower_half(base, tmp_path, BASE)
    torch.testing.assert_close(values(base), values(tiny.model(family)))
    keep_lower_half(tuned, tmp_path, BASE)
    computed = calls(tuned)
    torch.testing.assert_close(values(tuned), values(alone, naive_logprobs), rtol=1e-5, atol=1e-5)
    read, own = gradient(tuned), gradient(alone)
    assert computed == []
    assert own.norm() > 1e-3
    assert (read - own).norm() / own.norm() < 1e-4


@pytest.mark.parametrize("other", ["other weights", "other token ids", "damaged", "removed"])
def test_states_of_something_else_are_not_read(other, tmp_path):
    tuned = adapted(tiny.model(), [1])
    keep_lower_half(frozen(), tmp_path, ["sha256 of others", "none", "fp32"] if other == "other weights" else BASE)
    model = frozen()
    keep_lower_half(model, tmp_path, BASE)
    if other != "other weights":
        with torch.no_grad():
            response_logprobs(model, [[5, 6, 7, 9]] if other == "other token ids" else [[5, 6, 7, 8]], [[[9, 9]]])
    keep_lower_half(tuned, tmp_path, BASE)
    for file in tmp_path.glob("*.safetensors"):
        if other == "damaged":
            file.write_bytes(b"no tensors")
        elif other == "removed":
            file.unlink()
    computed = calls(tuned)
    with torch.no_grad():
        read = response_logprobs(tuned, [[5, 6, 7, 8]], [[[9, 9]]]).sums
    assert computed == [1]
    torch.testing.assert_close(read, naive_logprobs(tuned, [[5, 6, 7, 8]], [[[9, 9]]]).sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: adapted(tiny.model(), None), "an adapter reaches below the upper half of the layers"),
        (lambda: adapted(tiny.model(), [0]), "an adapter reaches below the upper half of the layers"),
        (lambda: tiny.model().requires_grad_(True), "the lower half of the layers is trained"),
        (lambda: frozen("bloom"), "BloomForCausalLM does not take a registered attention function"),
        (lambda: frozen(num_hidden_layers=1), "LlamaForCausalLM has no one list of layers"),
    ],
)
def test_where_the_lower_half_is_not_the_base_s_all_is_computed_and_the_log_says_why(make, why, tmp_path, caplog):
    model = make()
    with caplog.at_level(logging.INFO, logger="recalign"):
        keep_lower_half(model, tmp_path, BASE)
    assert caplog.messages[-1] == f"each model computes its lower layers by itself: {why}"
    torch.testing.assert_close(values(model), values(model, naive_logprobs), rtol=1e-4, atol=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_layers_that_look_past_their_input_are_found_out_by_trying(tmp_path, caplog):
    """An upper layer that also takes what a lower one left behind, as shared keys and values are."""
    model, left = frozen(), []
    lower, upper = model.model.layers
    lower.mlp.register_forward_hook(lambda _m, _a, out: left.append(out))
    upper.mlp.register_forward_hook(lambda _m, _a, out: out + 0.5 * left.pop())
    before = values(model)
    with caplog.at_level(logging.INFO, logger="recalign"):
        keep_lower_half(model, tmp_path, BASE)
    assert "LlamaForCausalLM: pop from empty list" in caplog.messages[-1]
    torch.testing.assert_close(values(model), before)


def test_the_folder_is_bounded_and_its_oldest_files_go_first(tmp_path, monkeypatch):
    def scored(model, first: int) -> None:
        with torch.no_grad():
            response_logprobs(model, [[first, *range(10, 40)]], [[[9, 9]]])

    model = frozen()
    keep_lower_half(model, tmp_path, BASE)
    for first in range(4):
        scored(model, 100 + first)
    files = sorted(tmp_path.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for age, file in enumerate(reversed(files)):
        os.utime(file, (1e9 - age, 1e9 - age))
    size = files[-1].stat().st_size
    monkeypatch.setattr(lower_half, "MOST_BYTES", 4 * size)
    keep_lower_half(model, tmp_path, BASE)
    assert len(list(tmp_path.glob("*.safetensors"))) <= 3  # the two newest, and the case that it is tried on
    for first in range(9):
        scored(model, 200 + first)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4 * size
