"""Whether a folder holds a whole base model: what a download, a clone or a copy left out is named before use."""

import json
import struct
from pathlib import Path
from typing import Any

from recalign.common.errors import RecalignError

IDENTITY = "base.json"  # in a base's folder: its id, revision and sha256
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")  # weights that run code when they are read
OTHER_WEIGHTS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx")
LFS = b"version https://git-lfs.github.com/spec/"
HEADER_LIMIT = 100_000_000  # bytes, of the safetensors format
SAMPLE = "Heat (1995), Amélie\n"
AGAIN = "download it again"


def check_model_files(folder: Path, model: str | None = None) -> None:
    """Raise RecalignError, naming file and fix, where `folder` is no whole causal LM in safetensors with a tokenizer.

    It reads configuration, tokenizer and the headers of the weights, never the weights, and runs none of the folder's
    code. model: what the user calls it, as in params.yaml; the folder by default.
    """
    called = f"base.model {model or str(folder)!r}"
    files = _weight_files(folder, called)
    config = read_config(folder / CONFIG, called)
    _check_architecture(folder, config, called)
    for name, tensors in files.items():
        held = check_whole(folder / name, called)
        if lacking := sorted(set(tensors) - held.keys()):
            raise RecalignError(f"{called}: {name} lacks {lacking[0]}, which {INDEX} says it holds; {AGAIN}")
    _check_tokenizer(folder, called)
    if "quantization_config" not in config:  # packed weights have shapes of their own
        _check_every_weight_is_there(folder, called)


def check_whole(file: Path, called: str) -> dict[str, Any]:
    """The header of a safetensors file: tensor name to dtype, shape and place, once the file is as long as it says.

    Raises RecalignError for a Git LFS pointer, a file cut short, and what is no safetensors at all.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        start = handle.read(8)
        _refuse_pointer(file, start + handle.read(len(LFS)), called)
        handle.seek(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if size < 10:
            raise RecalignError(f"{called}: {file.name} holds {size} bytes, which is no safetensors file; {AGAIN}")
        if length > HEADER_LIMIT:
            raise RecalignError(f"{called}: {file.name} is no safetensors file; give weights saved as safetensors")
        text = handle.read(length)
    if len(text) < length:
        _cut_short(file, size, 8 + length, called)
    try:
        header: dict[str, Any] = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        raise RecalignError(
            f"{called}: the header of {file.name} cannot be read, so it is damaged or no safetensors file; {AGAIN}"
        ) from None
    if size < end:
        _cut_short(file, size, end, called)
    if size > end:
        raise RecalignError(f"{called}: {file.name} holds {size:,} bytes where {end:,} belong; {AGAIN}")
    return tensors


def read_config(file: Path, called: str) -> dict[str, Any]:
    """A JSON object of a model or an adapter. Raises RecalignError where there is none, or a Git LFS pointer."""
    if not file.is_file():
        raise RecalignError(f"{called} has no {file.name}; give the whole folder, as 'save_pretrained' writes it")
    content = file.read_bytes()
    _refuse_pointer(file, content, called)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:100]
        raise RecalignError(f"{called}: {file.name} is not JSON ({said}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise RecalignError(f"{called}: {file.name} holds a {type(value).__name__}, not a JSON object; {AGAIN}")
    return value


def _refuse_pointer(file: Path, content: bytes, called: str) -> None:
    if content.startswith(LFS):
        raise RecalignError(
            f"{called}: {file.name} is a Git LFS pointer, not the file itself; run 'git lfs pull' in {file.parent}, "
            "or download the model again"
        )


def _cut_short(file: Path, size: int, whole: int, called: str) -> None:
    raise RecalignError(f"{called}: {file.name} holds {size:,} of {whole:,} bytes, so it was cut short; {AGAIN}")


def _weight_files(folder: Path, called: str) -> dict[str, list[str]]:
    """The files that hold the weights, with the tensors that an index says each holds; all of them are there."""
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: []}
    if not (folder / INDEX).is_file():
        raise RecalignError(f"{called} {_what_instead(folder)}")
    listed = read_config(folder / INDEX, called).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise RecalignError(f"{called}: {INDEX} has no weight_map of tensors to files; {AGAIN}")
    files: dict[str, list[str]] = {name: [] for name in sorted(set(listed.values()))}
    missing = [name for name in files if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise RecalignError(
            f"{called}: {len(missing)} of {len(files)} weight files that {INDEX} lists are missing ({missing[0]}); "
            "download what is missing"
        )
    for tensor, name in listed.items():
        files[name].append(tensor)
    return files


def _what_instead(folder: Path) -> str:
    """What lies in the folder in place of the weights that are read, and the fix."""
    for patterns, why in ((PICKLES, "a pickle, which can run code"), (OTHER_WEIGHTS, "another format")):
        found = sorted(file.name for pattern in patterns for file in folder.glob(pattern))
        if found:
            return (
                f"has no *.safetensors files, only {found[0]} ({why}; it is not read): convert it with "
                "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…), or take the model's safetensors"
            )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return f"has {others[0]}, but neither {WEIGHTS} nor {INDEX}; download the missing one, or rename the file"
    return f"has no *.safetensors files; download {WEIGHTS} into it"


def _check_architecture(folder: Path, config: dict[str, Any], called: str) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        model_type = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).model_type
    except Exception as error:  # whatever a foreign configuration can make transformers stumble over
        own = " and brings code of its own (auto_map)" if "auto_map" in config else ""
        raise RecalignError(
            f"{called} has no config.json that transformers knows without running the model's own code{own} "
            f"({first_line(error)}); choose a model whose architecture transformers ships"
        ) from None
    names = config.get("architectures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if known is None or not any(name == known or name.endswith("ForCausalLM") for name in names):
        raise RecalignError(
            f"{called} is not a causal language model (config.json: {', '.join(names) or 'no'} architecture, "
            f"model_type {model_type}); choose one whose architecture ends in ForCausalLM"
        )


def _check_tokenizer(folder: Path, called: str) -> None:
    """A folder without tokenizer files gives some families an empty tokenizer without a word, so it is tried."""
    from transformers import AutoConfig, AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        if (folder / name).is_file():
            read_config(folder / name, called)
    for name in ("tokenizer.model", "merges.txt", "vocab.txt"):
        if (folder / name).is_file():
            _refuse_pointer(folder / name, (folder / name).read_bytes()[: len(LFS)], called)
    fix = "download tokenizer.json and tokenizer_config.json of the same model into it"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        ids = tokenizer.encode(SAMPLE, add_special_tokens=False)
    except Exception as error:  # tokenizers raises bare exceptions, and files of every kind reach it
        raise RecalignError(f"{called} has no tokenizer that can be read ({first_line(error)}); {fix}") from None
    if not set(ids) - {tokenizer.unk_token_id}:
        raise RecalignError(f"{called} has no tokenizer: text gives no token; {fix}")
    text = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).get_text_config()
    rows = getattr(text, "vocab_size", None)
    if rows is not None and max(ids) >= rows:
        raise RecalignError(
            f"{called}: its tokenizer gives token {max(ids)}, but the model knows {rows} tokens (vocab_size), so they "
            f"belong to different models; {fix}"
        )


def _check_every_weight_is_there(folder: Path, called: str) -> None:
    """transformers draws what a file lacks at random, with a warning; here it is an error. No weight is read."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # its own report of the same takes a screen
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, device_map={"": "meta"}, output_loading_info=True, ignore_mismatched_sizes=True,
            trust_remote_code=False, local_files_only=True, use_safetensors=True,
        )  # fmt: skip
    except Exception as error:  # whatever a foreign configuration can make transformers stumble over
        raise RecalignError(f"{called} cannot be built from its config.json ({first_line(error)}); {AGAIN}") from None
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    found: dict[str, Any] = loaded[1]
    if found["mismatched_keys"]:
        name, held, wanted = min(tuple(map(_shown, entry)) for entry in found["mismatched_keys"])
        raise RecalignError(
            f"{called}: {name} has shape {held}, but config.json wants {wanted}; take both from the same model"
        )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise RecalignError(
            f"{called}: {len(missing)} tensors that config.json asks for are in no weight file ({missing[0]}); {AGAIN}"
        )


def _shown(part: Any) -> str:
    return part if isinstance(part, str) else str(list(part))


def first_line(error: Exception) -> str:
    """What a library said, in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
