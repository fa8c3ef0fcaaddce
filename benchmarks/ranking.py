"""What ranking costs: 20 candidates, and the exact best 10 of a whole catalogue. Ratios of CPU time, one process.

    python benchmarks/ranking.py --base data/models/base --items items.csv --cases cases.jsonl --json ranking.json

Per prompt form: 20 candidates of one case with a shared prompt, against 20 full sequences padded together (all-position
logits), against greedy generation of exactly 20 tokens for one case and for six at once (six cases with shared prompts
run in passes of two, which stay in a CPU's cache). Then, with the form `history`, the best 10 titles of the catalogue
by the search over their tree, and with --check once by scoring all of it. Last, searches of one, four and eight cases
at once. Variants alternate, a repetition is another case, the first one warms up. Without --items and --cases: the
films of the simulated world with histories drawn by a hash. An adapter (--adapter data/models/sft) shows what a tuned,
hence peaked, model costs.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from scoring import catalogue
from transformers import GenerationConfig

from recalign.common.origin import machine
from recalign.data.case_file import read_catalogue, read_file_cases
from recalign.data.records import Items, hashed_order
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.branches import Branches
from recalign.llm.scoring.logprobs import naive_logprobs, response_logprobs
from recalign.llm.trie import Found, Trie, Wanted, best_items, item_logprobs
from recalign.params.load import load_params

TOKENS, USERS, BEST = 20, 6, 10
PASS = 2  # cases in a forward pass of the six
TOGETHER = (1, 4, 8)  # cases in a search


@dataclass(frozen=True)
class Listed:
    """A case: a history and the candidates to rank."""

    history: list[int]
    candidates: list[int]


def simulated_cases(items: Items, count: int) -> list[Listed]:
    """Histories of eight films and 20 other candidates."""
    cases = []
    for number in range(count):
        drawn = sorted(items.ids, key=lambda item: hashed_order("benchmark", number, item))
        cases.append(Listed(drawn[:8], drawn[8:28]))
    return cases


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def generate(model: LanguageModel, prompts: Sequence[list[int]]) -> None:
    """Greedy, exactly TOKENS tokens each, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    fixed = GenerationConfig(do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0)
    with torch.inference_mode():
        model.model.generate(input_ids=ids, attention_mask=seen, generation_config=fixed)


def six(model: LanguageModel, prompts: Sequence[list[int]], titles: Sequence[list[list[int]]]) -> None:
    """The candidates of all cases, a few cases in a forward pass."""
    with torch.inference_mode():
        for start in range(0, len(prompts), PASS):
            response_logprobs(model.model, prompts[start : start + PASS], titles[start : start + PASS])


def candidates_of(model: LanguageModel, builder: PromptBuilder, cases: list[Listed], repeats: int) -> dict[str, Any]:
    """Seconds of each way to rank 20 candidates, one a repetition, and how far off the shared prompt's scores are."""
    taken: dict[str, list[float]] = {name: [] for name in ("shared", "naive", "generate", "generate_six", "shared_six")}
    apart, order, lengths = [], True, []
    for number in range(repeats + 1):
        group = cases[number * USERS : (number + 1) * USERS]
        prompts = [builder.prompt(case.history, candidates=case.candidates) for case in group]
        titles = [[builder.response(item) for item in case.candidates] for case in group]

        def score(way: Callable[..., Any], many: int, prompts: Any = prompts, titles: Any = titles) -> Any:
            with torch.inference_mode():
                return way(model.model, prompts[:many], titles[:many]).sums

        spent, shared = seconds(lambda score=score: score(response_logprobs, 1))
        taken["shared"].append(spent)
        spent, naive = seconds(lambda score=score: score(naive_logprobs, 1))
        taken["naive"].append(spent)
        taken["generate"].append(seconds(lambda prompts=prompts: generate(model, prompts[:1]))[0])
        taken["generate_six"].append(seconds(lambda prompts=prompts: generate(model, prompts))[0] / USERS)
        taken["shared_six"].append(seconds(lambda both=(prompts, titles): six(model, *both))[0] / USERS)
        apart.append(float((shared - naive).abs().max()))
        order &= torch.equal(shared.argsort(descending=True), naive.argsort(descending=True))
        lengths.append(len(prompts[0]))
    return {"seconds": {name: values[1:] for name, values in taken.items()}, "largest_difference": max(apart),
            "same_order": order, "prompt_tokens": statistics.mean(lengths)}  # fmt: skip


def search_of(
    model: LanguageModel, builder: PromptBuilder, items: Items, cases: list[Listed], repeats: int, check: bool
) -> dict[str, Any]:
    """Seconds of the search for the best titles and of 20 candidates, in turn; check: against all titles' scores."""
    build, trie = seconds(lambda: Trie({item: builder.response(item) for item in items.ids}))
    taken: dict[str, list[float]] = {"search": [], "shared": []}
    nodes = []
    for case in cases[: repeats + 1]:
        prompt, titles = builder.prompt(case.history), [builder.response(item) for item in case.candidates]

        def search(prompt: list[int] = prompt) -> Found:
            return best_items(Branches(model.model, [prompt]), trie, [Wanted(BEST)])[0]

        def shared(prompt: list[int] = prompt, titles: list[list[int]] = titles) -> Any:
            with torch.inference_mode():
                return response_logprobs(model.model, [prompt], [titles])

        spent, found = seconds(search)
        taken["search"].append(spent)
        taken["shared"].append(seconds(shared)[0])
        nodes.append(found.nodes)
    figures: dict[str, Any] = {
        "seconds": {name: values[1:] for name, values in taken.items()} | {"trie": [build]},
        "nodes": nodes[1:], "nodes_in_tree": len(trie.inner), "titles": len(items.ids),
    }  # fmt: skip
    if check:
        whole, scores = seconds(lambda: item_logprobs(Branches(model.model, [prompt]), trie))
        best = sorted(zip(-scores, trie.items, strict=True))[:BEST]
        figures["seconds"]["whole_catalogue"] = [whole]
        figures["same_items"] = [item for _, item in best] == [item for item, _ in found.items]
        figures["largest_difference"] = max(abs(-a - b) for (a, _), (_, b) in zip(best, found.items, strict=True))
    return figures


def together_of(
    model: LanguageModel, builder: PromptBuilder, items: Items, cases: list[Listed], repeats: int
) -> dict[str, Any]:
    """Seconds a case of searches of one, four and eight cases at once, eight other cases a repetition."""
    trie, most = Trie({item: builder.response(item) for item in items.ids}), max(TOGETHER)
    taken: dict[str, list[float]] = {str(many): [] for many in TOGETHER}
    nodes: dict[str, list[float]] = {str(many): [] for many in TOGETHER}
    same = True
    best_items(Branches(model.model, [builder.prompt(cases[0].history)]), trie, [Wanted(1)])  # warms up
    for number in range(repeats):
        prompts = [builder.prompt(case.history) for case in cases[number * most : (number + 1) * most]]
        first: list[list[int]] = []
        for many in TOGETHER:

            def search(many: int = many, prompts: list[list[int]] = prompts) -> list[Found]:
                groups = [prompts[start : start + many] for start in range(0, most, many)]
                wanted = [Wanted(BEST)] * many
                return [one for group in groups for one in best_items(Branches(model.model, group), trie, wanted)]

            spent, found = seconds(search)
            taken[str(many)].append(spent / most)
            nodes[str(many)].append(statistics.mean(one.nodes for one in found))
            best = [[item for item, _ in one.items] for one in found]
            first = first or best
            same &= best == first
    return {"seconds": taken, "nodes": nodes, "same_items": same, "titles": len(items.ids)}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """Median of the ratios a repetition, with the smallest and the largest."""
    each = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(each):.1f} [{each[0]:.1f}, {each[-1]:.1f}]"


def show_candidates(form: str, figures: dict[str, Any]) -> None:
    taken = figures["seconds"]
    print(f"\nform {form}: prompts of {figures['prompt_tokens']:.0f} tokens; CPU seconds a case, medians")
    for name, values in taken.items():
        print(f"  {name:<13} {statistics.median(values):.2f} {[round(value, 2) for value in values]}")
    print(f"  20 full sequences / shared prompt:      {ratio(taken['naive'], taken['shared'])}")
    print(f"  generation of {TOKENS} tokens / shared:       {ratio(taken['generate'], taken['shared'])} one case")
    print(f"                                          {ratio(taken['generate_six'], taken['shared_six'])} six at once")
    print(f"  largest difference {figures['largest_difference']:.1e} nats, same order: {figures['same_order']}")


def show_search(figures: dict[str, Any]) -> None:
    taken, nodes = figures["seconds"], figures["nodes"]
    print(
        f"\nbest {BEST} of {figures['titles']} titles ({figures['nodes_in_tree']} nodes to compute): CPU seconds a case"
    )
    for name, values in taken.items():
        print(f"  {name:<15} {statistics.median(values):.2f} {[round(value, 2) for value in values]}")
    print(f"  nodes computed {statistics.median(nodes):.0f} {nodes}")
    print(f"  search / 20 candidates: {ratio(taken['search'], taken['shared'])}")
    if "whole_catalogue" in taken:
        print(f"  whole catalogue / search: {taken['whole_catalogue'][0] / statistics.median(taken['search']):.1f}")
        print(f"  same items: {figures['same_items']}, largest difference {figures['largest_difference']:.1e} nats")


def show_together(figures: dict[str, Any]) -> None:
    print(f"\nbest {BEST} of {figures['titles']} titles, several cases in a search: CPU seconds a case")
    for many, values in figures["seconds"].items():
        nodes = statistics.mean(figures["nodes"][many])
        print(f"  {many} at once  {statistics.median(values):.2f} {[round(v, 2) for v in values]}, {nodes:.0f} nodes")
    print(f"  same items: {figures['same_items']} (equal in fp32; in bf16 a pass rounds by its size)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("data/models/base"), help="folder of the stage `base`")
    parser.add_argument("--adapter", type=Path, help="a trained adapter; by default the untrained model")
    parser.add_argument("--items", type=Path, help="CSV with item_id,title")
    parser.add_argument("--cases", type=Path, help="JSON lines with history and candidates")
    parser.add_argument("--repeats", type=int, default=5, help="measured repetitions; one more warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["candidates", "catalogue", "together"], help="one part")
    parser.add_argument("--compute", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--form", choices=["candidates", "history"], help="one of the two prompt forms")
    parser.add_argument(
        "--check", action="store_true", help="score the whole catalogue once too: a minute on 4,606 titles"
    )
    parser.add_argument("--json", type=Path, help="write all figures here too")
    options = parser.parse_args()
    params = load_params()
    base = params.base.model_copy(update={"compute": options.compute, "quantisation": "none"})
    model = load_language_model(options.base, base, adapter=options.adapter, threads=options.threads)
    items = read_catalogue(options.items) if options.items else catalogue()
    count = (options.repeats + 1) * max(USERS, *TOGETHER)
    if options.cases:
        cases = [Listed([*case.history], [*case.candidates]) for case in read_file_cases(options.cases, items)[:count]]
    else:
        cases = simulated_cases(items, count)

    def builder(form: Literal["history", "candidates"]) -> PromptBuilder:
        prompt = params.prompt.model_copy(update={"form": form, "history": 10})
        return PromptBuilder(model.tokenizer, items, prompt, "items", clock=False)

    figures: dict[str, Any] = {"machine": machine(), "command": sys.argv, "threads": options.threads}
    forms: list[Literal["candidates", "history"]] = ["candidates", "history"]
    if options.only in (None, "candidates"):
        for form in [options.form] if options.form else forms:
            figures[form] = candidates_of(model, builder(form), cases, options.repeats)
            show_candidates(form, figures[form])
    if options.only in (None, "catalogue"):
        figures["catalogue"] = search_of(model, builder("history"), items, cases, options.repeats, options.check)
        show_search(figures["catalogue"])
    if options.only in (None, "together"):
        figures["together"] = together_of(model, builder("history"), items, cases, options.repeats)
        show_together(figures["together"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
