"""How much the shared prompt saves, and what limits training: ratios of CPU time.

Variants alternate in one process.

    python benchmarks/scoring.py --base data/models/base --repeats 5

Prompts are histories of eight well-known films, responses films too. Prints the medians, all repetitions, the ratio,
and how far the shared values and gradients are from the naive ones.
"""

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from recalign.data.records import Items, hashed_order
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.logprobs import ResponseLogprobs, naive_logprobs, response_logprobs
from recalign.params.load import load_params

FILMS = Path(__file__).parent.parent / "src/recalign/data/films.csv"
Score = Callable[..., ResponseLogprobs]
Batch = tuple[list[list[int]], list[list[list[int]]]]  # prompts, responses
Step = Callable[[LanguageModel, Score, Batch], Tensor]


def catalogue() -> Items:
    """The films of the simulated world."""
    with FILMS.open(encoding="utf-8") as handle:
        titles = [f"{row['title']} ({row['year']})" for row in csv.DictReader(handle)]
    ids = tuple(range(len(titles)))
    return Items(ids, dict(zip(ids, titles, strict=True)), {i: {} for i in ids}, dict.fromkeys(ids, 1))


def batches(builder: PromptBuilder, items: Items, prompts: int, responses: int) -> Iterator[Batch]:
    """Endless different batches: histories of eight films, `responses` others to score."""
    number = 0
    while True:
        rows = []
        for _ in range(prompts):
            number += 1
            keys = {hashed_order("benchmark", number, item): item for item in items.ids}
            drawn = [keys[key] for key in sorted(keys)]
            rows.append((builder.prompt(drawn[:8]), [builder.response(i) for i in drawn[8 : 8 + responses]]))
        yield [prompt for prompt, _ in rows], [group for _, group in rows]


def tokens(batch: Batch) -> int:
    """Tokens that enter the decoder with a shared prompt."""
    return sum(len(p) + sum(len(r) - 1 for r in group) for p, group in zip(*batch, strict=True))


def rank(language_model: LanguageModel, score: Score, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return score(language_model.model, *batch).sums


def learn(language_model: LanguageModel, score: Score, batch: Batch) -> Tensor:
    """Forward and backward of a softmax loss, the first response chosen; the gradients as one vector."""
    language_model.model.zero_grad()
    (-torch.log_softmax(score(language_model.model, *batch).sums, dim=1)[:, 0].mean()).backward()
    return torch.cat([p.grad.flatten() for p in language_model.model.parameters() if p.grad is not None])


def timed(step: Step, language_model: LanguageModel, score: Score, batch: Batch) -> tuple[float, Tensor]:
    """CPU seconds of all threads, and the step's result."""
    start = time.process_time()
    result = step(language_model, score, batch)
    return time.process_time() - start, result


def compare(name: str, language_model: LanguageModel, step: Step, stream: Iterator[Batch], repeats: int) -> None:
    """Naive and shared in turn, on the same batches after one warm-up each."""
    pairs, apart = [], []
    for _ in range(repeats + 1):
        batch = next(stream)
        slow, naive = timed(step, language_model, naive_logprobs, batch)
        fast, shared = timed(step, language_model, response_logprobs, batch)
        pairs.append((slow, fast))
        apart.append(float((naive - shared).norm() / naive.norm()))
    slow, fast = (statistics.median(times) for times in zip(*pairs[1:], strict=True))
    print(f"{name}: {slow / fast:.1f}x (naive {slow:.2f} s, shared {fast:.2f} s), at most {max(apart):.1e} apart")
    print("  all repetitions:", [f"{naive:.2f}/{shared:.2f}" for naive, shared in pairs[1:]])


def throughput(language_model: LanguageModel, streams: dict[int, Iterator[Batch]], repeats: int) -> None:
    """Training tokens a CPU second by the number of prompts in one flat row."""
    rates: dict[int, list[float]] = {size: [] for size in streams}
    for _ in range(repeats + 1):
        for size, stream in streams.items():
            batch = next(stream)
            rates[size].append(tokens(batch) / timed(learn, language_model, response_logprobs, batch)[0])
    for size, values in rates.items():
        rate, each = statistics.median(values[1:]), [round(value) for value in values[1:]]
        print(f"training, {size} prompts a row: {rate:.0f} tokens a CPU second {each}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("data/models/base"), help="folder of the stage `base`")
    parser.add_argument("--repeats", type=int, default=5, help="measured repetitions; one more warms up")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    params, items = load_params(), catalogue()
    base = params.base.model_copy(update={"compute": "fp32", "quantisation": "none"})
    language_model = load_language_model(
        arguments.base, base, new_adapter=params.lora, trainable=True, threads=arguments.threads
    )
    with torch.no_grad():  # with B at zero, half of the gradients would be zero
        for name, weight in language_model.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01, generator=torch.Generator().manual_seed(1))
    builder = PromptBuilder(language_model.tokenizer, items, params.prompt, "films")
    compare("ranking 20 candidates", language_model, rank, batches(builder, items, 1, 20), arguments.repeats)
    compare("training step, K = 7", language_model, learn, batches(builder, items, 1, 8), arguments.repeats)
    throughput(language_model, {size: batches(builder, items, size, 8) for size in (1, 2, 4, 8)}, arguments.repeats)


if __name__ == "__main__":
    main()
