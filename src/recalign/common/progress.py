"""Progress of long work: what, how many, rate, time left; a bar on a terminal, a line now and then in a log.

What a stage is about to do, and what that takes as far as an earlier run on this machine measured it.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from recalign.common.run_log import COSTS, last_run

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
LOG_EVERY_SECONDS = 10.0
LOG_EVERY_SHARE = 0.05  # of the time so far: a night's work has some hundred lines, not thousands


def track(items: Iterable[T], total: int, what: str, unit: str = "items") -> Iterator[T]:
    """Yield `items` while reporting on standard error; `total` is their number, `unit` its plural noun."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, unit=f" {unit}", dynamic_ncols=True)
        return
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= max(LOG_EVERY_SECONDS, LOG_EVERY_SHARE * (now - start)):
            seconds = now - start
            left = duration((total - done) * seconds / done)
            print(f"{what}: {done} of {total} {unit}, {pace(done, seconds)}, {left} left", file=sys.stderr, flush=True)
            last = now
    seconds = time.monotonic() - start
    if seconds >= LOG_EVERY_SECONDS:
        said = f"{what}: {done} {unit} in {duration(seconds)}, {pace(done, seconds)}"
        print(said, file=sys.stderr, flush=True)


def pace(done: int, seconds: float) -> str:
    """'12.5/s', or '8.0 s each' where one takes longer than a second."""
    if not done or not seconds:
        return "—"
    return f"{done / seconds:.1f}/s" if done >= seconds else f"{seconds / done:.1f} s each"


def duration(seconds: float) -> str:
    """'42 s', '3 min 05 s' or '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


WEIGHTS_MB, WORK, ITEMS = "weights_mb", "work", "items"  # noted beside what a run took: of what it took so much
PER_THOUSAND = "per_thousand"  # seconds of ranking so many cases
CANDIDATES = 20  # of a sampled case
SEARCH = 5  # sampled cases that one of the whole catalogue is worth, as at evaluate.full_catalogue_cases


def forecast(work: str, seconds: float | None, peak_mb: float | None, least_mb: float) -> str:
    """The line that a stage logs before it starts.

    work: what will be done, with its counts; seconds: what that takes at the pace of the last run here, peak_mb: that
    run's memory, both None where nothing like it ran here; least_mb: the memory that is needed in any case.
    """
    time = "how long is not known, since nothing like it has run here"
    if seconds is not None:
        time = f"some {duration(seconds)} at the pace of the last run here"
    memory = f"at least {least_mb:,.0f} MB of memory" if peak_mb is None else f"{peak_mb:,.0f} MB of memory as then"
    return f"{work}; {time}, {memory}"


def memory_mb(model: "torch.nn.Module") -> float:
    """Megabytes of a model's weights in memory, an adapter's included."""
    return round(sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6, 3)


def reading_forecast(stage: str, work: str, tokens: int, weights_mb: float, notes: Path = COSTS) -> str:
    """Of a stage in which a language model reads so many tokens (sft, reference, align).

    weights_mb: `memory_mb` of the model. A run of other weights tells nothing of this one.
    """
    last = last_run(stage, notes)
    known = last if last.get(WEIGHTS_MB) == weights_mb else {}
    pace = known.get("tokens_per_second")
    seconds = tokens / pace if pace else None
    return forecast(f"{stage}: {work}, {tokens:,} tokens", seconds, known.get("peak_mb"), weights_mb)


def fitting_forecast(stage: str, work: str, amount: int, items: int, least_mb: float, notes: Path = COSTS) -> str:
    """Of a stage that fits a sequence model (baselines@sasrec) on so many train events times epochs.

    A run on a catalogue of another size (less than half, more than twice as many items) tells nothing of this one.
    """
    last = last_run(stage, notes)
    known = last if items / 2 <= last.get(ITEMS, 0) <= 2 * items else {}
    spent, done = known.get("seconds"), known.get(WORK)
    seconds = spent * amount / done if spent and done else None
    return forecast(f"{stage}: {work}", seconds, known.get("peak_mb"), least_mb)


def ranking_forecast(
    system: str, cases: Mapping[str, int], searched: int, weights_mb: float, notes: Path = COSTS
) -> str:
    """Of a stage in which a language model ranks: cases by what they are called, each one's 20 candidates.

    searched: cases of the whole catalogue, as expensive as SEARCH sampled ones; weights_mb: of the base's files.
    """
    last = last_run(f"rank@{system}", notes)
    known = last if last.get(WEIGHTS_MB) == weights_mb else {}
    each, count = known.get(PER_THOUSAND), sum(cases.values()) + SEARCH * searched
    counted = ", ".join(f"{number:,} {name}" for name, number in cases.items())
    work = f"rank@{system}: the candidates of {sum(cases.values()):,} cases ({counted})"
    work += f" and the whole catalogue for {searched:,}" if searched else ""
    return forecast(work, None if each is None else each * count / 1000, known.get("peak_mb"), weights_mb)


def reranking_forecast(system: str, people: int, titles: int, weights_mb: float, notes: Path = COSTS) -> str:
    """Of a language model that reranks so many titles for each of some people, at the pace of ranking CANDIDATES.

    weights_mb: `memory_mb` of the model.
    """
    last = last_run(f"rank@{system}", notes)
    each = last.get(PER_THOUSAND)
    seconds = None if each is None else each * people / 1000 * titles / CANDIDATES
    work = f"reranking with {system}: {people:,} {'person' if people == 1 else 'people'}, {titles:,} titles each"
    return forecast(work, seconds, last.get("peak_mb"), weights_mb)
