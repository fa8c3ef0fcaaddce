"""What four bits, eight bits and half precision cost a small base model once an adapter is trained on it.

    python benchmarks/precision.py --sequences 100 --cases 200 --json precision.json

In a project where `dvc repro prepare base` has run. Trains one SFT adapter a variant on the same sequences in the same
order, then ranks the same validation cases (never test). Prints NDCG@10 with its interval over users, the paired
difference to the first variant, nats per token on validation targets, and of training: tokens per second, CPU seconds
and the memory (MiB) by which it exceeds what the process held before.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

from alternating import peak_above_resident

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.origin import machine
from recalign.common.run_log import noted_costs
from recalign.data.records import Items
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import metric_interval, paired_difference
from recalign.llm.model.base import load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.params.load import Params, load_params
from recalign.project import BASE, PREPARED, Project
from recalign.ranking.language_model import LanguageModelRecommender
from recalign.ranking.trial import rank_sampled, read_trial
from recalign.stages.sft import sft

METRIC = "ndcg_at_10"
VARIANTS = {  # name: (base.quantisation, base.compute)
    "fp32": ("none", "fp32"),
    "bf16": ("none", "bf16"),
    "int8": ("int8", "auto"),
    "nf4": ("nf4", "auto"),
}


def variant_params(params: Params, name: str, sequences: int, cases: int) -> Params:
    """The project's params with a variant's base, `sequences` training histories and `cases` validation cases."""
    quantisation, compute = VARIANTS[name]
    return params.model_copy(
        update={
            "base": params.base.model_copy(update={"quantisation": quantisation, "compute": compute}),
            "sft": params.sft.model_copy(update={"examples": sequences}),
            "evaluate": params.evaluate.model_copy(update={"validation_cases": cases}),
        }
    )


def ranks(params: Params, adapter: Path | None, name: str) -> SystemRanks:
    """The validation cases under the model, ranked by log-prob."""
    items, summary = Items.read(PREPARED), read_json(PREPARED / "summary.json")
    model = load_language_model(BASE, params.base, adapter=adapter, seed=params.seed, threads=params.threads)
    builder = PromptBuilder(model.tokenizer, items, params.prompt, summary["noun"], clock=summary["clock"])
    recommender = LanguageModelRecommender(model, builder, items, name, batch=params.evaluate.batch)
    trial = read_trial(PREPARED, c.VALIDATION, "uniform", params.evaluate.validation_cases, params.seed)
    return rank_sampled(recommender, trial)


def main() -> None:
    """Train, rank and print every variant."""
    parser = argparse.ArgumentParser(description="LoRA on fp32, bf16, int8 and NF4 bases, after training")
    parser.add_argument("--sequences", type=int, default=100)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    params = load_params()
    rows, measured = [], dict[str, SystemRanks]()
    for name in arguments.variants:
        own = variant_params(params, name, arguments.sequences, arguments.cases)
        with tempfile.TemporaryDirectory() as place:
            adapter = Path(place) / "sft"
            untrained = ranks(own, None, name)
            begun = time.process_time()
            memory = peak_above_resident(partial(sft, own, Project().moved(sft=adapter, cache=Path(place))))
            seconds = time.process_time() - begun
            measured[name], facts = ranks(own, adapter, name), read_json(adapter / "training.json")
            speed = noted_costs(adapter, Path(place) / "costs")["tokens_per_second"]
        before, after = (metric_interval(r, METRIC, 2000, params.seed) for r in (untrained, measured[name]))
        row = {
            "variant": name,
            "untrained": before.as_dict(),
            "trained": after.as_dict(),
            "validation_nats": [facts["start_validation_loss"], facts["best_validation_loss"]],
            "tokens_per_second": speed,
            "cpu_seconds": round(seconds),
            "peak_mib": round(memory),
        }
        first = measured[arguments.variants[0]]
        if measured[name] is not first:
            row["minus"] = arguments.variants[0]
            row["difference"] = paired_difference(measured[name], first, METRIC, 2000, params.seed).as_dict()
        rows.append(row)
        print(json.dumps(row), flush=True)
    about = {"cases": arguments.cases, "sequences": arguments.sequences, "machine": machine()}
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
