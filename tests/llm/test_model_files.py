"""A damaged, partial or foreign base model or adapter is refused in one line before anything is made with it."""

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recalign.common.artifacts import folder, write_json
from recalign.common.errors import RecalignError
from recalign.llm import downloads
from recalign.llm.model.adapters import check_adapter
from recalign.llm.model.base import fetch_base, load_language_model
from recalign.llm.model.files import check_model_files
from recalign.params.base import BaseParams
from recalign.params.lora import LoraParams
from recalign.training.results import save_adapter

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 134\n"
LORA = LoraParams(rank=4, alpha=8.0, dropout=0.0, targets="all-linear")


def params(model: str = "tiny-random", **changes: Any) -> BaseParams:
    return BaseParams(model=model, revision=None, quantisation="none", compute="fp32").model_copy(update=changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "base"
    fetch_base(params(), out)
    return out


@pytest.fixture(scope="module")
def trained(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as `recalign sft` leaves it."""
    out = tmp_path_factory.mktemp("trained") / "sft"
    with folder(out) as partial:
        save_adapter(load_language_model(whole, params(), new_adapter=LORA), partial)
    return out


def copy(source: Path, target: Path, *without: str) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("manifest.json", "base.json", *without))
    return target


def sharded(place: Path) -> None:
    """The weights in two files with their index, as larger models have them."""
    tensors = load_file(place / "model.safetensors")
    names, half = sorted(tensors), len(tensors) // 2
    parts = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, place / file, metadata={"format": "pt"})
    (place / "model.safetensors").unlink()
    listed = {name: file for file, own in parts.items() for name in own}
    write_json(place / "model.safetensors.index.json", {"metadata": {}, "weight_map": listed})


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def cut_shard(place: Path) -> None:
    sharded(place)
    cut(place / "model-00002-of-00002.safetensors", 0.5)


def lose_shard(place: Path) -> None:
    sharded(place)
    (place / "model-00002-of-00002.safetensors").unlink()


def lose_index(place: Path) -> None:
    sharded(place)
    (place / "model.safetensors.index.json").unlink()


def lying_index(place: Path) -> None:
    sharded(place)
    index = json.loads((place / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00002.safetensors")
    write_json(place / "model.safetensors.index.json", index)


def without_a_layer(place: Path) -> None:
    tensors = {n: t for n, t in load_file(place / "model.safetensors").items() if "layers.1." not in n}
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        config = json.loads((place / "config.json").read_text()) | changes
        write_json(place / "config.json", {key: value for key, value in config.items() if value is not None})

    return change


def pickled(place: Path) -> None:
    (place / "model.safetensors").rename(place / "pytorch_model.bin")


def larger_tokenizer(place: Path) -> None:
    tokenizer = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: number + (number > 2) * 9000 for token, number in vocabulary.items()}
    write_json(place / "tokenizer.json", tokenizer)


BASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer": (lambda p: (p / "model.safetensors").write_bytes(POINTER), "is a Git LFS pointer.*lfs pull"),
    "config pointer": (lambda p: (p / "config.json").write_bytes(POINTER), "config.json is a Git LFS pointer"),
    "tokenizer pointer": (lambda p: (p / "tokenizer.json").write_bytes(POINTER), "tokenizer.json is a Git LFS pointer"),
    "half": (lambda p: cut(p / "model.safetensors", 0.5), r"holds [\d,]+ of [\d,]+ bytes, so it was cut short"),
    "half a header": (lambda p: cut(p / "model.safetensors", 0.001), "so it was cut short"),
    "empty": (lambda p: (p / "model.safetensors").write_bytes(b""), "holds 0 bytes, which is no safetensors file"),
    "page": (lambda p: (p / "model.safetensors").write_text("<!doctype html>" * 9), "is no safetensors file"),
    "longer": (lambda p: (p / "model.safetensors").open("ab").write(b"00"), "bytes where .* belong"),
    "cut shard": (cut_shard, "model-00002-of-00002.safetensors holds .* so it was cut short"),
    "lost shard": (lose_shard, r"1 of 2 weight files that model.safetensors.index.json lists are missing \(model-0"),
    "lost index": (lose_index, "neither model.safetensors nor model.safetensors.index.json"),
    "lying index": (lying_index, "model-00001-of-00002.safetensors lacks .*, which model.safetensors.index.json says"),
    "no layer": (without_a_layer, r"\d+ tensors that config.json asks for are in no weight file \(model.layers.1"),
    "other shapes": (configured(intermediate_size=96), r"has shape \[\d+, \d+\], but config.json wants \[\d+, \d+\]"),
    "pickle": (pickled, r"has no \*.safetensors files, only pytorch_model.bin \(a pickle"),
    "no tokenizer": (lambda p: [f.unlink() for f in p.glob("tokenizer*")], "no tokenizer.*download tokenizer.json"),
    "other tokenizer": (larger_tokenizer, "its tokenizer gives token .* but the model knows 640 tokens"),
    "broken tokenizer": (lambda p: cut(p / "tokenizer.json", 0.5), "tokenizer.json is not JSON"),
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "list": (lambda p: (p / "config.json").write_text("[]"), "config.json holds a list, not a JSON object"),
    "no architecture": (configured(architectures=None), "is not a causal language model .config.json: no architecture"),
    "encoder": (configured(model_type="bert", architectures=["BertForMaskedLM"]), "is not a causal language model"),
    "sequence to sequence": (configured(model_type="t5", architectures=["T5ForConditionalGeneration"]), "not a causal"),
    "unknown": (configured(model_type="newest"), "has no config.json that transformers knows"),
    "nonsense": (configured(num_attention_heads="many"), "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BASES)
def test_a_base_that_is_not_whole_is_refused_by_the_stage_base_and_by_the_check_of_the_doctor(
    kind: str, whole: Path, tmp_path: Path
) -> None:
    spoil, said = BASES[kind]
    place = copy(whole, tmp_path / "bad")
    spoil(place)
    with pytest.raises(RecalignError, match=said) as caught:
        fetch_base(params(str(place)), tmp_path / "out")
    assert str(caught.value).startswith(f"base.model '{place}'")
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["bad"]
    with pytest.raises(RecalignError, match=said):
        check_model_files(place)


def test_a_whole_base_in_one_file_or_in_shards_passes(whole: Path, tmp_path: Path) -> None:
    check_model_files(whole)
    place = copy(whole, tmp_path / "shards")
    sharded(place)
    fetch_base(params(str(place)), tmp_path / "out")


def test_families_whose_tokenizer_would_be_empty_without_files_are_refused(whole: Path, tmp_path: Path) -> None:
    """GPT-2 and Qwen2 get a tokenizer of one token from a folder without one, and score everything alike."""
    place = copy(whole, tmp_path / "bad", "tokenizer*")
    configured(model_type="gpt2", architectures=["GPT2LMHeadModel"])(place)
    with pytest.raises(RecalignError, match="has no tokenizer: text gives no token"):
        check_model_files(place)


@pytest.mark.parametrize("model_type", ["llama", "their-own"])
def test_a_hostile_base_runs_no_code_and_asks_nobody(
    model_type: str, whole: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto_map in config and tokenizer, and a Python file beside them that would leave a mark."""
    place, mark = copy(whole, tmp_path / "hostile"), tmp_path / "ran"
    (place / "theirs.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass C: pass\n")
    own = {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.C", "AutoTokenizer": ["theirs.C", None]}
    configured(model_type=model_type, auto_map=own)(place)
    told = json.loads((place / "tokenizer_config.json").read_text()) | {"auto_map": own}
    write_json(place / "tokenizer_config.json", told)
    shutil.copyfile(whole / "base.json", place / "base.json")
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a prompt was raised"))
    if model_type == "llama":
        check_model_files(place)
        assert load_language_model(place, params(), adapter=trained).identity["id"] == "tiny-random"
    else:
        with pytest.raises(RecalignError, match=r"without running the model's own code and brings code of its own"):
            check_model_files(place)
    assert not mark.exists()


def test_every_loading_call_of_transformers_names_trust_remote_code() -> None:
    """None, the default, asks the person at the terminal."""
    source = Path(downloads.__file__).parents[1]
    calls = 0
    for file in source.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for call in ("AutoModelForCausalLM.from_", "AutoTokenizer.from_", "AutoConfig.from_"):
            for start in (n for n in range(len(text)) if text.startswith(call, n) and "(…)" not in text[n : n + 60]):
                assert "trust_remote_code=False" in text[start : start + 220], f"{file.name}: {call}"
                calls += 1
    assert calls >= 3


def test_a_branch_of_the_hub_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the commit that the branch is now; nothing is fetched."""
    import huggingface_hub

    class Info:
        sha, siblings = "a" * 40, ()

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it was fetched"))
    for revision in ("main", "v1.0", "a" * 7):
        with pytest.raises(RecalignError, match=f"base.revision is '{revision}', a branch or tag.*: {'a' * 40}"):
            fetch_base(params("owner/name", revision=revision), tmp_path / "base")
    assert downloads.is_commit("0123456789abcdef" * 2 + "01234567")


# Adapters


def edited(**changes: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        write_json(place / "adapter_config.json", json.loads((place / "adapter_config.json").read_text()) | changes)

    return change


def with_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        file = place / "adapter_model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return write


def not_a_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[0]
    return tensors | {name: torch.full_like(tensors[name], torch.nan)}


def doubled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: torch.cat([t, t], dim=1 if "lora_A" in n else 0).contiguous() for n, t in tensors.items()}


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.replace("self_attn.q_proj", "attn.c_attn"): t for n, t in tensors.items()}


def halved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if "layers.0." in n}


WITHOUT_MODEL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unknown key": (edited(quantum_rank=3, peft_version="9.0"), r"sets quantum_rank, which PEFT .* written by 9"),
    "unknown type": (edited(peft_type="SHIRA9"), "has peft_type 'SHIRA9'; only 'LORA' adapters"),
    "bad value": (edited(layers_pattern="layers", layers_to_transform=None), "adapter_config.json cannot be followed"),
    "config cut short": (lambda p: cut(p / "adapter_config.json", 0.5), "adapter_config.json is not JSON"),
    "pointer": (lambda p: (p / "adapter_model.safetensors").write_bytes(POINTER), "is a Git LFS pointer"),
    "half": (lambda p: cut(p / "adapter_model.safetensors", 0.5), "so it was cut short"),
    "pickle": (lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"), "only, a pickle"),
    "not finite": (with_tensors(not_a_number), r"holds values that are not finite \(NaN or infinity\)"),
    "other base": (lambda p: write_json(p / "recalign.json", {"base": {"id": "other", "sha256": "f" * 64}}),
                   r"was trained on base other \(sha256 ffff.*\), not on tiny-random"),
}  # fmt: skip
WITH_MODEL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "shapes": (with_tensors(doubled), r"was trained on Org/Theirs and does not fit base tiny-random: its matrix for"),
    "modules": (with_tensors(renamed), r"trained on Org/Theirs and does not fit base tiny-random: it adapts .*c_attn"),
    "half the layers": (with_tensors(halved), r"lacks weights for .*layers\.1\."),
    "narrower targets": (edited(target_modules=["q_proj"]), "holds weights that its configuration does not name"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WITHOUT_MODEL)
def test_an_adapter_that_cannot_be_used_is_refused_before_a_model_is_loaded(
    kind: str, whole: Path, trained: Path, tmp_path: Path
) -> None:
    spoil, said = WITHOUT_MODEL[kind]
    place = copy(trained, tmp_path / "bad")
    spoil(place)
    with pytest.raises(RecalignError, match=said) as caught:
        check_adapter(place, json.loads((whole / "base.json").read_text()))
    assert "\n" not in str(caught.value)
    with pytest.raises(RecalignError, match=said):
        load_language_model(whole, params(), adapter=place)


@pytest.mark.parametrize("quantiser", ["none", "nf4"])
@pytest.mark.parametrize("kind", WITH_MODEL)
def test_an_adapter_that_does_not_fit_names_both_bases(
    kind: str, quantiser: str, whole: Path, trained: Path, tmp_path: Path
) -> None:
    spoil, said = WITH_MODEL[kind]
    place = copy(trained, tmp_path / "bad", "recalign.json")
    edited(base_model_name_or_path="Org/Theirs")(place)
    spoil(place)
    with pytest.raises(RecalignError, match=said) as caught:
        load_language_model(whole, params(quantisation=quantiser), adapter=place)
    assert "\n" not in str(caught.value)


def test_a_newer_peft_whose_unknown_settings_are_off_is_read(whole: Path, trained: Path, tmp_path: Path) -> None:
    place = copy(trained, tmp_path / "newer")
    edited(peft_version="9.0", quantum_rank=None, use_quantum=False)(place)
    newer, plain = (load_language_model(whole, params(), adapter=folder) for folder in (place, trained))
    assert newer.identity == plain.identity


def test_a_flipped_byte_of_an_adapter_is_found_when_it_is_loaded(whole: Path, trained: Path, tmp_path: Path) -> None:
    place = tmp_path / "flipped"
    shutil.copytree(trained, place)
    load_language_model(whole, params(), adapter=place)  # it was whole when this process first saw it
    content = bytearray((place / "adapter_model.safetensors").read_bytes())
    content[-5] ^= 1
    (place / "adapter_model.safetensors").write_bytes(bytes(content))
    with pytest.raises(RecalignError, match=r"adapter_model\.safetensors was changed after it was written"):
        load_language_model(whole, params(), adapter=place)


def test_training_that_diverged_leaves_no_adapter(whole: Path, tmp_path: Path) -> None:
    model = load_language_model(whole, params(), new_adapter=LORA)
    with torch.no_grad():
        for weight in model.model.parameters():
            weight.fill_(torch.inf)
    with pytest.raises(RecalignError, match="holds values that are not finite"), folder(tmp_path / "sft") as partial:
        save_adapter(model, partial)
    assert not (tmp_path / "sft").exists()
