"""Graph tokens: what a language model reads in the places after each SMILES, of one encoder for both molecules.

Token t of molecule m is vector m · tokens + t of the hybrid room's soft ids, so that prompts stay lists of ids and the
one scorer reads them. Each molecule of a pass is encoded once, by its own number: the second is never the first's copy
(the released MolTC code does that where its graph network is frozen).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moltc.gin import Gin
from moltc.graphs import graph_of, joined
from moltc.params import GraphParams
from moltc.resampler import Resampler
from recalign.common.artifacts import replacing
from recalign.common.errors import RecalignError
from recalign.hybrid.modality import ModalityAdapter, embedding_std
from recalign.hybrid.prompts import Projected, attach, soft_id
from recalign.llm.model.adapters import check_finite
from recalign.llm.model.base import LanguageModel

WEIGHTS = "graph.safetensors"
SIZES = "sizes"


@dataclass(frozen=True)
class Sizes:
    """What a graph side has to be built with: the graph section of params, and the language model's width."""

    tokens: int
    layers: int
    width: int
    query_layers: int
    heads: int
    llm_dim: int


class GraphVectors(Projected):
    """The n-th graph token of a list of molecules: graph network, queries, adapter; all of it may learn.

    table [M · tokens]: the molecule that each vector belongs to. head: of a number, from the language model's last
    hidden state.
    """

    scale: Tensor

    def __init__(self, smiles: Sequence[str], sizes: Sizes, std: float, seed: int) -> None:
        """smiles: canonical; std: of the embedding table; seed: of all weights, torch's own state is left alone."""
        nn.Module.__init__(self)  # Projected's own table is of fixed vectors; here graphs are encoded
        self.sizes = sizes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gin = Gin(sizes.width, sizes.layers)
            self.resampler = Resampler(sizes.width, max(1, sizes.tokens), sizes.query_layers, sizes.heads)
            self.head = nn.Linear(sizes.llm_dim, 1)
        self.adapter = ModalityAdapter(sizes.width, sizes.llm_dim, std=std, seed=seed)
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))  # mean and spread of the head's numbers in training
        self.register_buffer("table", torch.empty(0, dtype=torch.long), persistent=False)
        self.show(smiles)

    def show(self, smiles: Sequence[str]) -> None:
        """Read other molecules from now on: vector m · tokens + t is token t of the m-th of them."""
        self.smiles = tuple(smiles)
        self.table = torch.arange(len(smiles), device=self.table.device).repeat_interleave(self.sizes.tokens)

    def forward(self, numbers: Tensor) -> Tensor:
        """[K, llm_dim] of numbers [K] of graph tokens."""
        molecules, place = torch.unique(self.rows(numbers), return_inverse=True)
        encoded = self.molecule_tokens([self.smiles[molecule] for molecule in molecules.tolist()])
        return encoded[place, numbers % self.sizes.tokens]

    def molecule_tokens(self, smiles: Sequence[str]) -> Tensor:
        """[M, tokens, llm_dim] of M different molecules."""
        graphs = joined([graph_of(each) for each in smiles]).to(self.table.device)
        atoms = self.gin(graphs)
        queries = self.resampler(atoms, graphs.owner, self.gin.pooled(atoms, graphs))
        vectors: Tensor = self.adapter(queries.flatten(0, 1))
        return vectors.unflatten(0, (len(smiles), -1))

    def ids(self, molecule: int) -> list[int]:
        """The soft ids of a molecule's tokens, by its place in the list."""
        first = molecule * self.sizes.tokens
        return [soft_id(first + token) for token in range(self.sizes.tokens)]

    def scale_to(self, labels: np.ndarray) -> None:
        """Let the head count in the spread of training's labels, from their mean."""
        self.scale.copy_(torch.tensor([float(labels.mean()), float(labels.std()) or 1.0]))

    def number(self, hidden: Tensor) -> Tensor:
        """[B] numbers, in the label's unit, of last hidden states [B, llm_dim]."""
        mean, spread = self.scale
        found: Tensor = self.head(hidden.float())[:, 0] * spread + mean
        return found


def attach_graphs(
    lm: LanguageModel, smiles: Sequence[str], params: GraphParams, seed: int, trained: Path | None = None
) -> GraphVectors:
    """Let a language model read the graphs of molecules by new weights, or those that `write_graphs` wrote into
    `trained`; the graph network of these learns on only where graph.tuned says so.

    Raises RecalignError where that folder's are damaged, or of another size than `params` or the language model.
    """
    width = lm.model.get_input_embeddings().weight.shape[-1]
    sizes = Sizes(**params.model_dump(exclude={"tuned"}), llm_dim=width)
    vectors = GraphVectors(smiles, sizes, embedding_std(lm.model), seed)
    if trained is not None:
        _load(vectors, trained / WEIGHTS)
        vectors.gin.requires_grad_(params.tuned)
    if sizes.tokens == 0:
        for part in (vectors.gin, vectors.resampler, vectors.adapter):
            part.requires_grad_(False)
    attach(lm.model, vectors)
    return vectors


def write_graphs(vectors: GraphVectors, folder: Path) -> None:
    """Write every tensor by its name into an existing folder, whether it trains at the moment or not."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in vectors.state_dict().items()}
    said = json.dumps(asdict(vectors.sizes), sort_keys=True)
    with replacing(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={SIZES: said})
    check_finite(folder / WEIGHTS, "the graph side that was trained")


def _load(vectors: GraphVectors, path: Path) -> None:
    if not path.is_file():
        raise RecalignError(f"{path} is missing; run 'dvc repro' to train it")
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[SIZES])
            if said != asdict(vectors.sizes):
                raise RecalignError(
                    f"{path} was trained with {said}, but graph and base.model here say {asdict(vectors.sizes)}; "
                    "set them as they were, or train again with 'dvc repro'"
                )
            vectors.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise RecalignError(f"{path} is damaged ({told}); restore it with 'dvc checkout'") from None
