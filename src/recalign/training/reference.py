"""The store of reference log-probs: what the adapter of align.start gives to every response of the pairs, once.

A log-prob is keyed by all that it depends on: the model (base, adapter, quantisation, compute type), the scorer's
version and the token ids; whether a prompt is shared or scored alone is part of the model's digest. So every objective
and β reads the same store, and a changed strategy, more pairs or more negatives cost only what is new.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from recalign.common import columns as c
from recalign.common.artifacts import digest_of, read_parquet
from recalign.common.errors import RecalignError
from recalign.common.progress import track
from recalign.llm.scoring.logprobs import SCORER, response_logprobs, tokens_at_once
from recalign.training.examples import PreferenceExample
from recalign.training.loop import micro_batches

log = logging.getLogger(__name__)
SCHEMA = pa.schema([(c.KEY, pa.string()), (c.SUM, pa.float64()), (c.LENGTH, pa.int64())])


@dataclass(frozen=True)
class Logprob:
    """Summed log-prob (nats) of a response and its tokens, terminator included."""

    sum: float
    length: int


Store = dict[str, Logprob]


def response_key(model_digest: str, prompt: list[int], response: list[int]) -> str:
    """The key of a response after a prompt under a model."""
    return digest_of([model_digest, SCORER, prompt, response])


def keys_of(model_digest: str, example: PreferenceExample) -> list[str]:
    """The keys of an example's responses, the chosen one first."""
    return [response_key(model_digest, example.prompt, response) for response in example.responses]


def read_store(folder: Path) -> Store:
    """Read data/reference/reference.parquet; empty where there is none yet."""
    file = folder / "reference.parquet"
    if not file.exists():
        return {}
    return {row[c.KEY]: Logprob(row[c.SUM], row[c.LENGTH]) for row in read_parquet(file).to_pylist()}


def store_table(store: Store) -> pa.Table:
    """The store as a table, in ascending key."""
    rows = [{c.KEY: key, c.SUM: store[key].sum, c.LENGTH: store[key].length} for key in sorted(store)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def sums_of_model(
    model: torch.nn.Module, model_digest: str, examples: Sequence[PreferenceExample], micro_tokens: int
) -> dict[str, list[float]]:
    """As `reference_sums`, of the model as it is now, without a store."""
    model.eval()
    store: Store = {}
    for part in compute(model, model_digest, examples, micro_tokens):
        store |= part
    return reference_sums(store, model_digest, examples)


def reference_sums(store: Store, model_digest: str, examples: Sequence[PreferenceExample]) -> dict[str, list[float]]:
    """example id → reference log-probs of its responses. Raises RecalignError where the store lacks one."""
    found = {}
    for example in examples:
        keys = keys_of(model_digest, example)
        missing = [key for key in keys if key not in store]
        if missing:
            raise RecalignError(
                f"data/reference lacks {len(missing)} log-probs of example {example.example_id} under this "
                "adapter; run 'dvc repro reference' to compute them"
            )
        found[example.example_id] = [store[key].sum for key in keys]
    return found


def missing_examples(store: Store, model_digest: str, examples: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    """The examples, cut down to the responses that the store lacks, the like in length together."""
    cut = []
    for example in examples:
        keys = keys_of(model_digest, example)
        new = [response for key, response in zip(keys, example.responses, strict=True) if key not in store]
        if new:
            cut.append(PreferenceExample(example.example_id, example.prompt, new))
    return sorted(cut, key=lambda example: (-example.tokens, example.example_id))


def compute(
    model: torch.nn.Module, model_digest: str, examples: Sequence[PreferenceExample], micro_tokens: int
) -> Iterator[Store]:
    """Score the examples' responses without gradients, yielding the new log-probs of one micro-batch after another."""

    def size(part: Sequence[PreferenceExample]) -> int:
        return tokens_at_once(model, [e.prompt for e in part], [e.responses for e in part])

    parts = micro_batches(examples, micro_tokens, size)
    for batch in track(parts, len(parts), "reference", "batches"):
        with torch.inference_mode():
            scored = response_logprobs(model, [e.prompt for e in batch], [e.responses for e in batch])
        sums, lengths = scored.sums.double().tolist(), scored.lengths.tolist()
        yield {
            key: Logprob(sums[i][k], lengths[i][k])
            for i, example in enumerate(batch)
            for k, key in enumerate(keys_of(model_digest, example))
        }
