"""A recommender around a sequence encoder: SASRec, GRU4Rec or Caser behind the one seam."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recalign.data.records import Items
from recalign.params.recommenders import NextItemParams
from recalign.recommenders.item_text import TextMap
from recalign.recommenders.neural.encoders import Caser, Encoder, EncoderName, GRU4Rec, SASRec, TextEmbedding, TextUse
from recalign.recommenders.recommender import Request
from recalign.recommenders.store import CELLS, columns_of, in_blocks, load_state, rows_by_title, save_state


@dataclass(frozen=True)
class Settings:
    """What an encoder is built from: widths in floats, lengths in items.

    length: most recent items that it reads; window: those that Caser's filters cover; ordered: False where histories
    are sets, so that SASRec gets no positions. text, text_width, text_bound: as in `TextEmbedding`; told only where
    items are read by their text.
    """

    dimension: int = 64
    dropout: float = 0.2
    length: int = 50
    window: int = 5
    ordered: bool = True
    text: TextUse = "none"
    text_width: int = 0
    text_bound: float = 0.0

    @property
    def told(self) -> dict[str, Any]:
        """What is kept beside the weights: nothing of text where there is none."""
        return {key: value for key, value in asdict(self).items() if self.text != "none" or not key.startswith("text")}

    @classmethod
    def of(cls, params: NextItemParams, clock: bool) -> "Settings":
        """Those of an encoder trained by `params` on a log with or without a clock."""
        return cls(params.dimension, params.dropout, params.max_history, params.window, ordered=clock)


class Sequential:
    """Scores by the state after a history, which was trained to tell the next item."""

    def __init__(self, catalogue: Items, name: EncoderName, encoder: Encoder, settings: Settings) -> None:
        """encoder: over len(catalogue.ids) items, in their ascending order."""
        self.catalogue = catalogue
        self.name: str = name
        self.encoder = encoder
        self.settings = settings

    @property
    def start(self) -> int:
        """The column that stands before a history and fills up short rows; it is never scored."""
        return len(self.catalogue.ids)

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> Tensor:
        """[B, C] scores of the candidates, or [B, items] of the whole catalogue; float64.

        An empty history is scored by the state of the start. Raises RecalignError for an item, in a history or a list,
        that the catalogue does not hold.
        """
        # an eighth at once: the scores are copied, and states are beside them
        return in_blocks(self.catalogue, requests, candidates, self._scores, CELLS // 8)

    @torch.inference_mode()
    def _scores(self, histories: list[tuple[int, ...]]) -> NDArray[np.float64]:
        rows: NDArray[np.float64] = self.encoder.scores(self.last(histories)).double().numpy()
        return rows

    def item_embedding(self, ids: list[int]) -> Tensor:
        """[N, d] of item ids: the rows that histories are read with and answers are scored with, without gradient.

        Raises RecalignError for an item that the catalogue does not hold.
        """
        return self.encoder.embedding.weight.detach()[torch.from_numpy(columns_of(self.catalogue, ids))]

    @torch.no_grad()
    def states(self, histories: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """States [B, T, d] at each position, and lengths [B] of what was read; beyond its length a row holds filling.

        A history of fewer than `length` items is read after the start, which is position 0; of a longer one the latest.
        """
        rows, lengths = self._rows(histories)
        self.encoder.eval()
        states: Tensor = self.encoder(rows)
        return states, lengths

    def last(self, histories: list[tuple[int, ...]]) -> Tensor:
        """[B, d]: each history's state after its latest item."""
        states, lengths = self.states(histories)
        return states[torch.arange(len(lengths)), lengths - 1]

    def _rows(self, histories: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        columns = columns_of(self.catalogue, [item for history in histories for item in history])
        ends = np.cumsum([len(history) for history in histories])
        length = self.settings.length
        read = [np.append(self.start, own)[-length:] for own in np.split(columns, ends[:-1])] if histories else []
        return filled(read, self.start), torch.tensor([len(row) for row in read], dtype=torch.int64)

    def save(self, path: Path) -> None:
        """Write the weights and settings into the folder `path`."""
        text, reading = self._text_state()
        weights = {name: value.numpy() for name, value in self.encoder.state_dict().items()}
        save_state(path, self.name, self.catalogue, weights | reading, self.settings.told | text)

    def _text_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What of its text is kept beside the weights."""
        return {}, {}

    @staticmethod
    def load(name: EncoderName, path: Path, catalogue: Items) -> "Sequential":
        """Read what `save` wrote. Raises RecalignError for another recommender, or a model of another catalogue."""
        arrays, told = load_state(path, name, catalogue)
        blocks = told.pop("blocks", None)  # models of before have none, and read no other catalogue
        settings = Settings(**told)
        encoder = build_encoder(name, len(catalogue.ids), settings)
        own = encoder.state_dict().keys()
        encoder.load_state_dict({key: torch.from_numpy(arrays[key]) for key in own})
        if blocks is None:
            return Sequential(catalogue, name, encoder.eval(), settings)
        reading = TextMap.of_state({"blocks": blocks}, {key: kept for key, kept in arrays.items() if key not in own})
        return TextSequential(catalogue, name, encoder.eval(), settings, reading)


class TextSequential(Sequential):
    """One whose items are read by their text (`TextEmbedding`), those of another catalogue too."""

    def __init__(
        self, catalogue: Items, name: EncoderName, encoder: Encoder, settings: Settings, text_map: TextMap
    ) -> None:
        """text_map: leads from what is written of an item to its frozen dimensions."""
        super().__init__(catalogue, name, encoder, settings)
        self.encoder_name = name
        self.text_map = text_map

    def on(self, catalogue: Items) -> "TextSequential":
        """The same on another catalogue: items of the same title keep what they learned, all others are their text.

        Raises RecalignError where the text encoder is not what it was.
        """
        rows, new = rows_by_title(self.catalogue, catalogue)
        weights = self.encoder.state_dict()
        before = weights["embedding.text"][:-1].norm(dim=1).mean()
        for key in ("embedding.text", "embedding.own", "bias"):
            moved = weights[key][np.maximum(rows, 0)]
            moved[rows < 0] = 0.0
            weights[key] = torch.cat([moved, weights[key][len(self.catalogue.ids) :]])  # and the start of a history
        if new:
            told = torch.from_numpy(self.text_map.of(catalogue, new)).float()
            weights["embedding.text"][np.flatnonzero(rows < 0)] = told
        # `delta` bounds what is learned by the mean norm of all texts: new ones must not move the items that are known
        after = weights["embedding.text"][:-1].norm(dim=1).mean()
        settings = replace(self.settings, text_bound=self.settings.text_bound * float(before / after))
        encoder = build_encoder(self.encoder_name, len(catalogue.ids), settings)
        encoder.load_state_dict(weights)
        return TextSequential(catalogue, self.encoder_name, encoder.eval(), settings, self.text_map)

    def _text_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return self.text_map.state()


def build_encoder(name: EncoderName, items: int, settings: Settings) -> Encoder:
    """A new encoder over so many items, with weights drawn from torch's random numbers."""
    encoder = _without_text(name, items, settings)
    if settings.text != "none":
        encoder.embedding = TextEmbedding(
            items, settings.dimension, settings.text, settings.text_width, settings.text_bound
        )
    return encoder


def _without_text(name: EncoderName, items: int, settings: Settings) -> Encoder:
    match name:
        case "sasrec":
            return SASRec(items, settings.dimension, settings.dropout, settings.length, settings.ordered)
        case "gru4rec":
            return GRU4Rec(items, settings.dimension, settings.dropout)
        case "caser":
            return Caser(items, settings.dimension, settings.dropout, settings.window)


def filled(rows: Sequence[NDArray[np.int64]], filling: int) -> Tensor:
    """[B, T] of rows of any length, T the longest, filled up at their right ends."""
    width = max((len(row) for row in rows), default=0)
    block = np.full((len(rows), width), filling, dtype=np.int64)
    for number, row in enumerate(rows):
        block[number, : len(row)] = row
    return torch.from_numpy(block)
