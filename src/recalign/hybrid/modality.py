"""The modality adapter: vectors of another model become input embeddings of the language model, and `splice` puts them
in place.

One adapter serves LLaRA (arXiv 2312.02445: a vector an item), RecInterpreter (arXiv 2310.20487: a vector a history) and
MolTC (arXiv 2402.03781: several vectors an object, of a resampler that the caller puts before it).

`Teacher` has a recommender's item vectors, kept beside the adapter that reads them, whatever recommender they are of.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recalign.common.artifacts import digest_of, file_digest, read_parquet, replacing, write_parquet
from recalign.common.columns import ITEM, TITLE
from recalign.common.errors import RecalignError
from recalign.data.records import Items, hashed_order
from recalign.hybrid.states import States
from recalign.llm.model.adapters import MODALITY as WEIGHTS
from recalign.llm.model.adapters import RECOMMENDER, check_finite
from recalign.llm.model.adapters import TEACHER as FILE

PLACEHOLDER = -1  # the id of a place that a vector takes: no tokenizer gives a negative id, so no title can hold it
ORIGIN = "origin"  # one key of the file's metadata: the order of several is not fixed, and equal adapters equal bytes
SAMPLE = 1024  # rows of noise that the scale of a new adapter is set on


class ModalityAdapter(nn.Module):
    """Linear, GELU, Linear from [N, in_dim] or [N, tokens, in_dim] to [N, tokens, llm_dim]; [N, llm_dim] of one token.

    Each input vector is normalised to mean 0 and variance 1, for a recommender's vectors have any scale. A new adapter
    gives outputs with the standard deviation `std`, that of the embedding table: at another scale the first step is off
    by several nats. With several tokens an input [N, in_dim] has `tokens` outputs, and [N, tokens, in_dim] one each.
    """

    def __init__(self, in_dim: int, llm_dim: int, tokens: int = 1, *, std: float = 1.0, seed: int = 0) -> None:
        """std: of the outputs at the start; seed: draws the weights, torch's own random state is left alone.

        Raises RecalignError where a size is below 1 or the scale is not a positive number.
        """
        super().__init__()
        for name, size in (("in_dim", in_dim), ("llm_dim", llm_dim), ("tokens", tokens)):
            if size < 1:
                raise RecalignError(f"a modality adapter has {name} {size}; it must be at least 1")
        if not 0 < std < float("inf"):
            raise RecalignError(f"a modality adapter has std {std}; give that of the embedding table, above 0")
        self.in_dim, self.llm_dim, self.tokens = in_dim, llm_dim, tokens
        self.before = nn.LayerNorm(in_dim, elementwise_affine=False)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            self.hidden = nn.Linear(in_dim, llm_dim)
            self.out = nn.Linear(llm_dim, tokens * llm_dim)
            nn.init.zeros_(self.out.bias)
            self.out.weight.mul_(std / self(torch.randn(SAMPLE, in_dim)).std())

    def forward(self, vectors: Tensor) -> Tensor:
        """Raises RecalignError for vectors of another width or number of tokens."""
        each = vectors.ndim == 3
        if vectors.ndim not in (2, 3) or vectors.shape[-1] != self.in_dim or (each and vectors.shape[1] != self.tokens):
            raise RecalignError(
                f"vectors of shape {list(vectors.shape)} were given to a modality adapter for "
                f"[N, {self.in_dim}] or [N, {self.tokens}, {self.in_dim}]; give it the vectors that it was trained on"
            )
        hidden = nn.functional.gelu(self.hidden(self.before(vectors.to(self.hidden.weight.dtype))))
        if each and self.tokens > 1:  # token t of the input through the t-th part of the last layer
            parts = self.out.weight.unflatten(0, (self.tokens, self.llm_dim))
            return torch.einsum("nti,toi->nto", hidden, parts) + self.out.bias.unflatten(0, (self.tokens, -1))
        outputs: Tensor = self.out(hidden.flatten(0, 1) if each else hidden)
        return outputs if self.tokens == 1 and not each else outputs.unflatten(-1, (self.tokens, -1))


def splice(embeddings: Tensor, ids: Tensor, placeholder: int, vectors: Tensor) -> Tensor:
    """[B, L, D] embeddings of ids [B, L] with the vectors [N, D] in place of the placeholders, in order of rows.

    Raises RecalignError naming both counts where there are not as many placeholders as vectors, or the widths.
    """
    places = ids == placeholder
    count = int(places.sum())
    if count != len(vectors):
        raise RecalignError(
            f"a prompt has {count} placeholders (id {placeholder}) for {len(vectors)} vectors; both must be equal: "
            "text may hold no placeholder, and each vector needs one"
        )
    if embeddings.shape[-1] != vectors.shape[-1]:
        raise RecalignError(
            f"vectors of width {vectors.shape[-1]} do not fit embeddings of width {embeddings.shape[-1]}; "
            "use the adapter that was trained with this base.model"
        )
    # not in place: the embeddings may be a view of a frozen table, and both sides keep their gradients
    return embeddings.masked_scatter(places[..., None], vectors.to(embeddings.dtype))


@dataclass(frozen=True)
class Origin:
    """What an adapter was trained with: teacher and its digest, the digest of what its rows are in their order (items),
    and that of the LoRA beside it (None: the language model was frozen)."""

    teacher: str
    teacher_digest: str
    order_digest: str
    lora_digest: str | None = None


@torch.no_grad()
def embedding_std(model: nn.Module) -> float:
    """Standard deviation of what a model's input embedding gives for its tokens, which a new adapter begins with.

    Not of the table: some families (Gemma) scale what they read from it.
    """
    embedding: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(min(len(embedding.weight), SAMPLE), device=embedding.weight.device)
    return float(embedding(ids[None]).float().std())


def save_modality(adapter: ModalityAdapter, origin: Origin, folder: Path) -> None:
    """Write WEIGHTS into an existing folder: every tensor by its name, whether it trains at the moment or not.

    Raises RecalignError where training left values that are not finite.
    """
    sizes = {"in_dim": adapter.in_dim, "llm_dim": adapter.llm_dim, "tokens": adapter.tokens}
    said = json.dumps({**asdict(origin), **sizes}, sort_keys=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
    with replacing(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={ORIGIN: said})
    check_finite(folder / WEIGHTS, "the modality adapter that was trained")


def load_modality(folder: Path, wanted: Origin) -> ModalityAdapter:
    """Read what `save_modality` wrote, for the teacher, order and LoRA that are `wanted` beside it.

    Raises RecalignError where the file is missing or damaged, or naming what differs: the teacher, its training, the
    items, or the LoRA.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise RecalignError(f"{folder} holds no {WEIGHTS}, so no modality adapter; train it with 'dvc repro'")
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[ORIGIN])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it lists no other way
        sizes = {name: int(said.pop(name)) for name in ("in_dim", "llm_dim", "tokens")}
        origin = Origin(**said)
        adapter = ModalityAdapter(**sizes)
        adapter.load_state_dict(tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise RecalignError(f"{path} is no whole modality adapter ({told}); restore it with 'dvc checkout'") from None
    _check_origin(path, origin, wanted)
    check_finite(path, f"modality adapter {folder}")
    return adapter.eval()


def _check_origin(path: Path, found: Origin, wanted: Origin) -> None:
    if found.teacher != wanted.teacher:
        raise RecalignError(
            f"{path} was trained on the vectors of '{found.teacher}', not of '{wanted.teacher}'; give that teacher"
        )
    for name, what in (
        ("teacher_digest", f"another fit of '{found.teacher}'"),
        ("order_digest", "another catalogue, or items in another order"),
        ("lora_digest", "another run's LoRA adapter"),
    ):
        own, other = getattr(found, name), getattr(wanted, name)
        if own != other:
            raise RecalignError(
                f"{path} was trained with {what} ({str(own)[:12]}, here {str(other)[:12]}); "
                "take both from one run, or train it again with 'dvc repro'"
            )


def modality_digest(folder: Path) -> str:
    """sha256 of an adapter's file, its origin included."""
    return file_digest(folder / WEIGHTS)


VECTOR = "vector"


@dataclass(frozen=True)
class Teacher:
    """Item vectors [N, d] of a recommender, in the order of `ids`; titles: by which a newer catalogue knows the items.

    fitted: digest of the folder that they were read from, or that of what was made of them. states: of the recommender
    itself, where prompts show what it has read up to an item; None: they show the item's vector.
    """

    name: str
    ids: tuple[int, ...]
    titles: tuple[str, ...]
    vectors: Tensor
    fitted: str
    states: States | None = None

    def __post_init__(self) -> None:
        if self.vectors.shape[:1] != (len(self.ids),) or len(self.ids) != len(self.titles):
            raise RecalignError(
                f"the teacher '{self.name}' has {len(self.vectors)} vectors for {len(self.ids)} items; fit it again "
                f"with 'dvc repro baselines@{self.name}'"
            )

    @cached_property
    def order_digest(self) -> str:
        """Digest of which items the vectors are of, in their order."""
        return digest_of([self.ids, self.titles])

    @cached_property
    def digest(self) -> str:
        """Digest of the vectors themselves, of what they were read from, and of what computes states."""
        told = [self.states.digest] if self.states else []
        return digest_of([self.name, self.fitted, self.vectors.float().numpy().tobytes().hex(), *told])

    def numbers(self, catalogue: Items) -> dict[int, int]:
        """Item of a catalogue → number of its vector, by title; items without one are left out.

        With states these are all items of the recommender, and one of which it can say nothing has a vector of zeros.
        """
        said = self.vectors.any(dim=1).tolist() if self.states else [True] * len(self.titles)
        known = {title: number for number, title in enumerate(self.titles) if said[number]}
        return {item: known[title] for item, title in catalogue.titles.items() if title in known}

    def write(self, folder: Path) -> None:
        """Write FILE, and the recommender of states, into an existing folder; there they travel with the adapter."""
        table = pa.table({
            ITEM: pa.array(self.ids, pa.int64()), TITLE: pa.array(self.titles, pa.string()),
            VECTOR: pa.array(self.vectors.float().tolist(), pa.list_(pa.float32())),
        })  # fmt: skip
        told = {b"name": self.name.encode(), b"fitted": self.fitted.encode()}
        if self.states:
            told |= {b"states": b"yes"}
            self.states.write(folder / RECOMMENDER)
        write_parquet(folder / FILE, table.replace_schema_metadata(told))

    @classmethod
    def read(cls, folder: Path, most: int | None = None) -> "Teacher":
        """What `write` wrote; most: as of `States`. Raises RecalignError where it is missing or something else."""
        if not (folder / FILE).is_file():
            raise RecalignError(f"{folder} holds no {FILE}, the vectors of its teacher; restore it with 'dvc checkout'")
        table = read_parquet(folder / FILE)
        said = table.schema.metadata or {}
        if {b"name", b"fitted"} - said.keys() or {ITEM, TITLE, VECTOR} - set(table.column_names) or not len(table):
            raise RecalignError(f"{folder / FILE} holds no vectors of a teacher; restore it with 'dvc checkout'")
        vectors = torch.tensor(np.stack(table[VECTOR].to_pylist()), dtype=torch.float32)
        ids, titles = (tuple(table[name].to_pylist()) for name in (ITEM, TITLE))
        name, own, states = said[b"name"].decode(), Items(ids, dict(zip(ids, titles, strict=True)), {}, {}), None
        if b"states" in said:
            states = States.read(name, folder / RECOMMENDER, own, most)
        return cls(name, ids, titles, vectors, said[b"fitted"].decode(), states)


def shuffled(teacher: Teacher, seed: int) -> Teacher:
    """A control: every item has another item's vector, by a hashed order."""
    order = sorted(range(len(teacher.ids)), key=lambda number: hashed_order(seed, "shuffled", teacher.ids[number]))
    moved = torch.empty(len(order), dtype=torch.long)
    moved[torch.tensor(order)] = torch.tensor([*order[1:], order[0]])  # one place on along that order: nobody keeps his
    return _made(teacher, teacher.vectors[moved], f"shuffled by {seed}")


def averaged(teacher: Teacher) -> Teacher:
    """A control: every item has the mean vector of all."""
    return _made(teacher, teacher.vectors.mean(dim=0, keepdim=True).expand_as(teacher.vectors).clone(), "averaged")


def _made(teacher: Teacher, vectors: Tensor, how: str) -> Teacher:
    """Raises RecalignError where prompts show states: no table of vectors could stand for them."""
    if teacher.states:
        raise RecalignError(
            f"the teacher '{teacher.name}' shows states, and the controls 'shuffled' and 'mean' are of static vectors; "
            "set hybrid.vectors to 'static' for them"
        )
    return replace(teacher, vectors=vectors, fitted=digest_of([teacher.fitted, how]))
