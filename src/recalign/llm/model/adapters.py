"""LoRA adapters: made, checked, and loaded only onto the base they were trained on."""

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from recalign.common.artifacts import digest_of, file_digest, read_json, verify_once
from recalign.common.errors import RecalignError
from recalign.llm.model.files import check_whole, first_line, read_config
from recalign.params.lora import LoraParams

log = logging.getLogger(__name__)
WEIGHTS, CONFIG, IDENTITY = "adapter_model.safetensors", "adapter_config.json", "recalign.json"
PICKLED = "adapter_model.bin"
MODALITY, TEACHER = "modality.safetensors", "teacher.parquet"  # beside them where prompts show vectors (room hybrid)
RECOMMENDER = "teacher"  # a folder beside them where the vectors are states: the recommender that computes them
PLACES = (".", "adapter", "artifacts/package/adapter")  # in a folder: training's own, a package's, a whole version's


def find_adapter(place: Path) -> Path | None:
    """The adapter's folder in `place`, whether training wrote it or a registered version was downloaded there."""
    return next((place / inner for inner in PLACES if (place / inner / CONFIG).is_file()), None)


def adapter_digest(folder: Path) -> str:
    """sha256 over an adapter's weights, configuration and vectors, and over what computes these. Raises RecalignError
    when one of the first two is missing."""
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise RecalignError(f"{folder} holds no {name}, so it is no adapter; give the folder that training wrote")
    computing = sorted(file for file in (folder / RECOMMENDER).glob("*") if file.is_file())
    beside = [file_digest(file) for file in (folder / MODALITY, folder / TEACHER, *computing) if file.is_file()]
    return digest_of([file_digest(folder / WEIGHTS), read_json(folder / CONFIG), *beside])


def check_adapter(folder: Path, identity: Mapping[str, str]) -> None:
    """Refuse a folder that is no whole LoRA adapter, or one trained on another base than `identity` (a base.json).

    It needs no model, so the first stage that sees an adapter can ask. Raises RecalignError naming the file and the fix
    for weights that are missing, a pickle, a Git LFS pointer, cut short, changed since they were written or not finite,
    and for a configuration that this PEFT cannot follow; naming both bases for another base. Whether an adapter from
    elsewhere, without a recalign.json, fits is known by its shapes only, at load.
    """
    called = f"adapter {folder}"
    if not (folder / WEIGHTS).is_file() and (folder / PICKLED).is_file():
        raise RecalignError(f"{called} holds {PICKLED} only, a pickle, which is not read; save it as {WEIGHTS}")
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise RecalignError(f"{folder} holds no {name}, so it is no adapter; give the folder that training wrote")
    tensors = check_whole(folder / WEIGHTS, called)
    if not tensors:
        raise RecalignError(f"{called}: {WEIGHTS} holds no tensor; give the folder that training wrote")
    _check_config(read_config(folder / CONFIG, called), called)
    verify_once(folder)
    check_finite(folder / WEIGHTS, called)
    _check_base(folder, identity)


def _check_base(folder: Path, identity: Mapping[str, str]) -> None:
    if not (folder / IDENTITY).is_file():
        log.warning("%s has no %s: whether it fits base %s is known by its shapes only", folder, IDENTITY,
                    identity["id"])  # fmt: skip
        return
    trained_on = read_config(folder / IDENTITY, f"adapter {folder}").get("base")
    if not isinstance(trained_on, dict) or not {"id", "sha256"} <= trained_on.keys():
        raise RecalignError(f"{folder / IDENTITY} does not name a base (id, sha256); restore it with 'dvc checkout'")
    if trained_on["sha256"] != identity["sha256"]:
        raise RecalignError(
            f"adapter {folder} was trained on base {trained_on['id']} (sha256 {str(trained_on['sha256'])[:12]}), "
            f"not on {identity['id']} (sha256 {identity['sha256'][:12]}); set base.model and base.revision accordingly"
        )


def _check_config(config: dict[str, Any], called: str) -> None:
    """PEFT drops keys that it does not know with a warning, and computes something else than what was trained."""
    peft = import_peft()
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RecalignError(f"{called}: {CONFIG} has peft_type {kind!r}; only 'LORA' adapters can be read")
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)} | {"auto_mapping", "peft_version"}
    off: tuple[Any, ...] = (None, False, {}, [], "")  # what a newer PEFT writes of what was not used
    unknown = sorted(key for key, value in config.items() if key not in known and value not in off)
    if unknown:
        writer = config.get("peft_version")
        raise RecalignError(
            f"{called}: {CONFIG} sets {', '.join(unknown)}, which PEFT {peft.__version__} does not know"
            f"{f' (it was written by {writer})' if writer else ''}; train it without, or install a PEFT that knows it"
        )
    try:
        peft.LoraConfig(**{key: value for key, value in config.items() if key in known - {"peft_version"}})
    except Exception as error:  # a foreign configuration: PEFT checks combinations by whatever fails first
        raise RecalignError(f"{called}: {CONFIG} cannot be followed ({first_line(error)}); save it anew") from None


def import_peft() -> ModuleType:
    """PEFT, the quick way (`import_bitsandbytes`)."""
    from recalign.llm.model.quantisation import import_bitsandbytes

    with suppress(ImportError):  # PEFT adapts plain weights without it
        import_bitsandbytes()
    import peft

    return peft


def check_finite(file: Path, called: str) -> None:
    """Raise RecalignError where the weights of `called`, in a safetensors file, hold NaN or infinity."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  it has no other way to list its tensors
            if not torch.isfinite(weights.get_tensor(name)).all():
                raise RecalignError(
                    f"{called}: {name} holds values that are not finite (NaN or infinity), so nothing can be ranked; "
                    "train it again with a lower learning rate"
                )


def add_adapter(model: Any, params: LoraParams, seed: int) -> Any:
    """A PEFT model with a new LoRA adapter (arXiv 2106.09685): B is zero, so it still computes what `model` does.

    A is drawn from `seed`; torch's own random state is left as it was. With lora.layers the backward pass ends where
    the adapters do. Raises RecalignError when lora.targets fit no module.
    """
    import torch

    peft = import_peft()
    targets = params.targets if isinstance(params.targets, str) else list(params.targets)
    upper = None
    if params.layers is not None:
        depth = model.config.get_text_config().num_hidden_layers
        upper = list(range(max(depth - params.layers, 0), depth))
        targets = _linear_names(model) if targets == "all-linear" else targets  # peft wants names beside layers
    config = peft.LoraConfig(
        r=params.rank, lora_alpha=params.alpha,  # a float is fine: it is only divided by r
        lora_dropout=params.dropout, target_modules=targets, layers_to_transform=upper,
        bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            said = str(error).splitlines()[0]
            raise RecalignError(f"lora.targets is {params.targets!r}: {said}; 'all-linear' fits every model") from None


def _linear_names(model: Any) -> list[str]:
    """Last names of all linear modules but the head: what peft's "all-linear" stands for."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    return sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, linear) and m is not head})


def scale_adapter(model: Any, strength: float) -> None:
    """Keep a share of what the adapter learned, in place: weights on the straight line from the base (0) to the trained
    model (1). Wortsman et al. 2022, arXiv 2109.01903, eq. 1, here for what LoRA adds: (α/r) B A is scaled by B."""
    import torch

    with torch.no_grad():
        for name, weights in model.named_parameters():
            if ".lora_B." in name:
                weights.mul_(strength)


def load_adapter(model: Any, folder: Path, *, trainable: bool, base: str) -> Any:
    """A PEFT model with the adapter of `folder`; its weights are frozen unless `trainable`. base: the model's name.

    Raises RecalignError naming both bases where the adapter's modules or shapes are not the model's, or where it holds
    weights for only a part of the modules that its configuration names.
    """
    peft = import_peft()
    config = read_json(folder / CONFIG)
    trained_on = config.get("base_model_name_or_path") or "a base that it does not name"
    file = check_whole(folder / WEIGHTS, f"adapter {folder}")
    misfit = _misfit(model, {name: entry["shape"] for name, entry in file.items()})
    fits = f"adapter {folder} was trained on {trained_on} and does not fit base {base}"
    fix = "set base.model to the base that it was trained on"
    if misfit:
        raise RecalignError(f"{fits}: {misfit}; {fix}")
    try:
        loaded = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, local_files_only=True)
    except Exception as error:  # PEFT names a misfit by whatever fails first
        raise RecalignError(f"{fits} ({first_line(error)}); {fix}") from None
    wanted = peft.get_peft_model_state_dict(loaded, save_embedding_layers=False)
    if odd := sorted(wanted.keys() ^ file.keys()):
        where = "lacks weights for" if odd[0] in wanted else "holds weights that its configuration does not name:"
        raise RecalignError(f"adapter {folder} {where} {odd[0]}; give the whole folder that training wrote")
    return loaded


def _misfit(model: Any, shapes: dict[str, list[int]]) -> str | None:
    """The first LoRA matrix whose module the model lacks, or has in another shape; None where all fit."""
    modules = dict(model.named_modules())
    for name, shape in sorted(shapes.items()):
        for matrix, side in ((".lora_A.weight", 0), (".lora_B.weight", 1)):
            if not name.endswith(matrix) or len(shape) != 2:
                continue
            path = name.removesuffix(matrix).removeprefix("base_model.model.")
            module = modules.get(path)
            if module is None:
                return f"it adapts {path}, which the base lacks"
            sizes = _sizes(module)
            if sizes is not None and shape[1 - side] != sizes[side]:
                return f"its matrix for {path} is {shape[1 - side]} wide, the base's module {sizes[side]}"
    return None


def _sizes(module: Any) -> tuple[int, int] | None:
    """Width in and out of a linear module, quantised or not; None where it is another kind."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return None
