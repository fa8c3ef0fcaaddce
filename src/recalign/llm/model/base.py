"""The base model: fetched once into a folder with its identity, and loaded with or without an adapter."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from recalign import uncollected
from recalign.common.artifacts import digest_of, file_digest, folder, read_json, write_json
from recalign.common.errors import RecalignError
from recalign.llm import downloads
from recalign.llm.model.adapters import adapter_digest, add_adapter, check_adapter, load_adapter
from recalign.llm.model.files import IDENTITY, check_model_files
from recalign.llm.model.quantisation import choose_device, choose_dtype, quantisation_config, same_in_both_modes
from recalign.llm.model.random_models import silence, write_tiny_random
from recalign.llm.scoring.logprobs import verdict_of
from recalign.params.base import BaseParams
from recalign.params.lora import LoraParams

log = logging.getLogger(__name__)
SMOLLM2, TINY = "smollm2-135m-instruct", "tiny-random"
COPIED = (".safetensors", ".json", ".jinja", ".model", ".txt")  # of a local folder; pickles stay behind


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM ready to score, train or generate.

    model: transformers or PEFT; dtype: "fp32" or "bf16", of activations and plain weights; quantisation: what really
    runs, "none" where 4 or 8 bits cannot; identity: base.json (id, revision, sha256); digest: of base, adapter,
    quantisation, dtype and the way of scoring, the key of everything computed with this model as it was loaded.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: str
    quantisation: str
    identity: dict[str, str]
    digest: str


def fetch_base(params: BaseParams, out: Path) -> None:
    """Write the base model that base.model names as a Hugging Face folder with base.json into `out`.

    base.json: id (what base.model accepts again, a local folder's name), revision, sha256 over the weight files.
    Raises RecalignError when it is not found, or is no whole causal LM (`check_model_files` says what is asked).
    """
    with folder(out) as partial:
        if params.model == SMOLLM2:
            identity, revision = SMOLLM2, downloads.smollm2(partial)
        elif params.model == TINY:
            write_tiny_random(partial)
            identity, revision = TINY, "1"
        elif (source := Path(params.model).expanduser()).is_dir():
            check_model_files(source, params.model)
            _copy(source, partial)
            identity, revision = source.resolve().name, "local"
        elif downloads.is_hub_name(params.model):
            identity, revision = params.model, downloads.hub(params.model, params.revision, partial)
        else:
            raise RecalignError(
                f"base.model is {params.model!r}, which is no folder; allowed: {SMOLLM2}, {TINY}, "
                "a Hub name owner/name with base.revision, or the path of a model's folder"
            )
        check_model_files(partial, params.model)
        write_json(partial / IDENTITY, {"id": identity, "revision": revision, "sha256": _weights_digest(partial)})


def _copy(source: Path, target: Path) -> None:
    files = [file for file in sorted(source.iterdir()) if file.suffix in COPIED]
    downloads.need_space(target, sum(file.stat().st_size for file in files))
    for file in files:
        shutil.copyfile(file, target / file.name)


def _weights_digest(path: Path) -> str:
    return digest_of({file.name: file_digest(file) for file in sorted(path.glob("*.safetensors"))})


@uncollected()
def load_language_model(
    base: Path,
    params: BaseParams,
    *,
    adapter: Path | None = None,
    new_adapter: LoraParams | None = None,
    trainable: bool = False,
    seed: int = 0,
    threads: int | None = None,
) -> LanguageModel:
    """Load a base folder, with an adapter's folder or a new adapter on top.

    trainable: the adapter gets gradients and the model is in train mode, else in eval mode; the base is always frozen.
    seed: draws a new adapter; threads: of torch on the CPU. The same folder, adapter and params give the same log-probs
    in both modes (dropout of LoRA aside: that of the base is 0), so a policy equals its reference at step 0. How the
    base can be scored is checked here, and the log says it.
    Raises RecalignError when the base is missing, cannot be scored, computes something else in training, or when the
    adapter was trained on another one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading takes a second; in a log the bar takes a screen
    if adapter is not None and new_adapter is not None:
        raise ValueError("either an adapter to load or a new one, not both")
    if threads is not None:
        torch.set_num_threads(threads)
    identity = read_json(base / IDENTITY)
    trained = None
    if adapter is not None:
        check_adapter(adapter, identity)
        trained = adapter_digest(adapter)
    device = choose_device()
    dtype = choose_dtype(params, device)
    quantiser = quantisation_config(params, device, dtype)
    options = {"device_map": {"": device}} | ({"quantization_config": quantiser} if quantiser else {})
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True, **options
    )
    # no prepare_model_for_kbit_training: it recasts norms and head to fp32, which a frozen reference would not share
    model.requires_grad_(False)
    silence(model)
    if quantiser:
        same_in_both_modes(model, device)
    verdict = verdict_of(model)  # of the bare base, so that a policy is scored the way its reference was
    if trainable and verdict.wavers:
        raise RecalignError(
            f"base.model {identity['id']!r} cannot be trained to a preference: {verdict.wavers}, so its policy would "
            "not be its reference; choose another base.model"
        )
    if adapter is not None:
        model = load_adapter(model, adapter, trainable=trainable, base=identity["id"])
    elif new_adapter is not None:
        model = add_adapter(model, new_adapter, seed)
    model.train(trainable)
    quantisation = params.quantisation if quantiser else "none"
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    digest = digest_of([identity["sha256"], trained, quantisation, name, verdict.way])
    log.info("%s on %s: weights %s, compute %s", identity["id"], device, name if not quantiser else quantisation, name)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    return LanguageModel(model, tokenizer, device, name, quantisation, identity, digest)
