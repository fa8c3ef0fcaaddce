"""LoRA adapters: made, saved so that they can move, and loaded only onto the base they were trained on."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from recalign.artifacts import digest_of, file_digest, read_json, write_json
from recalign.errors import RecalignError
from recalign.params import LoraParams

if TYPE_CHECKING:
    from recalign.llm.base import LanguageModel

log = logging.getLogger(__name__)
WEIGHTS, CONFIG, IDENTITY = "adapter_model.safetensors", "adapter_config.json", "recalign.json"


def adapter_digest(folder: Path) -> str:
    """sha256 over an adapter's weights and configuration. Raises RecalignError when one of them is missing."""
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise RecalignError(f"{folder} holds no {name}, so it is no adapter; give the folder that training wrote")
    return digest_of([file_digest(folder / WEIGHTS), read_json(folder / CONFIG)])


def check_base(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse an adapter that was trained on other weights than those of `identity` (a base.json).

    Raises RecalignError naming both bases. An adapter from elsewhere, without a recalign.json, passes with a warning.
    """
    if not (folder / IDENTITY).is_file():
        log.warning("%s has no %s: whether it fits base %s cannot be checked", folder, IDENTITY, identity["id"])
        return
    trained_on = read_json(folder / IDENTITY)["base"]
    if trained_on["sha256"] != identity["sha256"]:
        raise RecalignError(
            f"adapter {folder} was trained on base {trained_on['id']} (sha256 {trained_on['sha256'][:12]}), "
            f"not on {identity['id']} (sha256 {identity['sha256'][:12]}); set base.model and base.revision accordingly"
        )


def add_adapter(model: Any, params: LoraParams, seed: int) -> Any:
    """A PEFT model with a new LoRA adapter (arXiv 2106.09685): B is zero, so it still computes what `model` does.

    A is drawn from `seed`; torch's own random state is left as it was. With lora.layers the backward pass ends where
    the adapters do. Raises RecalignError when lora.targets fit no module.
    """
    from peft import LoraConfig, get_peft_model

    targets = params.targets if isinstance(params.targets, str) else list(params.targets)
    upper = None
    if params.layers is not None:
        depth = model.config.get_text_config().num_hidden_layers
        upper = list(range(max(depth - params.layers, 0), depth))
        targets = _linear_names(model) if targets == "all-linear" else targets  # peft wants names beside layers
    config = LoraConfig(
        r=params.rank, lora_alpha=params.alpha,  # type: ignore[arg-type]  # a float is fine: it is only divided by r
        lora_dropout=params.dropout, target_modules=targets, layers_to_transform=upper,
        bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            said = str(error).splitlines()[0]
            raise RecalignError(f"lora.targets is {params.targets!r}: {said}; 'all-linear' fits every model") from None


def _linear_names(model: Any) -> list[str]:
    """Last names of all linear modules but the head: what peft's "all-linear" stands for."""
    head = model.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    return sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, linear) and m is not head})


def load_adapter(model: Any, folder: Path, *, trainable: bool) -> Any:
    """A PEFT model with the adapter of `folder`; its weights are frozen unless `trainable`."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def save_adapter(language_model: "LanguageModel", folder: Path) -> None:
    """Write the adapter into an existing folder (one that `artifacts.folder` yields): weights, configuration, base.

    The configuration names the base by id instead of this machine's path, and its lists are sorted: equal
    adapters are equal bytes.
    """
    # "auto" would ask the Hub whether the vocabulary grew; embeddings are never trained here
    language_model.model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = language_model.identity["id"]
    config["revision"] = language_model.identity["revision"]
    config["target_modules"] = _ordered(config["target_modules"])
    write_json(folder / CONFIG, config)
    write_json(folder / IDENTITY, {
        "base": language_model.identity,
        "quantisation": language_model.quantisation,
        "dtype": language_model.dtype,
    })  # fmt: skip


def _ordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value
