"""In which way each causal language model of transformers is scored, as the table of docs/architectures.md.

`python benchmarks/architectures.py` tries every type on a tiny random model of its default configuration (a decoder,
and with its sliding window on where it has one), and rewrites the table; some minutes on two cores.
"""

import argparse
import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from recalign.common.artifacts import write_text
from recalign.common.errors import RecalignError
from recalign.llm.model.random_models import twin_of_config
from recalign.llm.scoring.logprobs import Way, on_twin

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
SECONDS = 90  # for one type
REFUSED, UNBUILT = "refused", "not built"


@dataclass(frozen=True)
class Row:
    """A type and how it is scored: a way, REFUSED, or UNBUILT, with the reason; apart: of the way taken, in nats."""

    kind: str
    way: str
    apart: float
    reason: str

    @property
    def line(self) -> str:
        """The row of the table; differences that are rounding alone are not told apart, so that tables compare."""
        return f"| {self.kind} | {self.way} | {self.reason.replace('|', '/') or '-'} |"


def kinds() -> list[str]:
    """Every type of transformers that AutoModelForCausalLM knows."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def row_of(kind: str) -> Row:
    """Build a tiny model of a type and check it."""
    try:
        with _at_most(SECONDS):
            twin = twin_of_config(_config(kind))
    except Exception as error:
        return Row(kind, UNBUILT, 0.0, _short(error))
    if twin is None:
        return Row(kind, UNBUILT, 0.0, "its default configuration cannot be made small")
    try:
        with _at_most(SECONDS):
            found = on_twin(twin)
    except RecalignError as error:
        return Row(kind, REFUSED, 0.0, _short(error))
    except Exception as error:
        return Row(kind, REFUSED, 0.0, f"needs more than a text: {_short(error)}")
    reasons = [reason for reason in dict.fromkeys([*found.refused.values(), found.wavers or ""]) if reason]
    return Row(kind, found.way, found.apart, "; ".join(reasons))


def table(rows: list[Row]) -> str:
    """The page's table with its counts."""
    counts = {way: sum(row.way == way for row in rows) for way in (*Way, REFUSED, UNBUILT)}
    said = ", ".join(f"{count} {way}" for way, count in counts.items())
    head = f"{len(rows)} types of transformers {transformers.__version__}: {said}.\n\n"
    head += "| type | scored | why not faster |\n|---|---|---|\n"
    return head + "\n".join(row.line for row in rows) + "\n"


def _config(kind: str) -> Any:
    config = CONFIG_MAPPING[kind]()
    text = config.get_text_config()
    for name, value in (("is_decoder", True), ("use_sliding_window", True), ("max_window_layers", 0)):
        if hasattr(text, name):
            setattr(text, name, value)
    for name, value in (("num_key_value_heads", getattr(text, "num_attention_heads", 1)), ("num_experts_per_tok", 2)):
        if getattr(text, name, 1) is None:  # a checkpoint always states them
            setattr(text, name, value)
    if hasattr(text, "sliding_window") and text.sliding_window is None:
        text.sliding_window = 8
    if hasattr(text, "use_sliding_window") and getattr(text, "layer_types", None):
        text.layer_types = ["sliding_attention"] * len(text.layer_types)
    return config


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:140] or type(error).__name__


def main() -> None:
    """Check every type and write the page's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="these types alone, printed and not written")
    only = parser.parse_args().only
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for kind in only or kinds():
        rows.append(row_of(kind))
        print(rows[-1].line, f"{rows[-1].apart:.1e}", flush=True)
    if not only:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        write_text(PAGE, f"{before}{BEGIN}\n{table(rows)}{END}{after}")


if __name__ == "__main__":
    main()
