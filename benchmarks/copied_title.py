"""What an item gains by copying a title: its mean rank of 20 under the copy, against a clean title that nobody met.

    python benchmarks/copied_title.py --prepared data/prepared --base data/models/base --adapters data/models/sft

Each warm test case has its list with one wrong candidate replaced by an item that is in nobody's history. Its clean
title is one of the log that training never saw (a hidden or untrained item), drawn by a hash. The copies:

liked, word for word   the title of the last item that the prompt shows; preparation tells twins apart by year or id,
                       in the history too, and the model reads what preparation then writes
liked, with a mark     the same with "!", which preparation leaves alone (validation warns of both)
a hit, word for word   the most liked item that the person did not meet, as a title is worth something by itself
a hit, with a mark     the same with "!"

Lift: mean rank under the clean title minus that under the copy, places of 20, with a 95 % interval of the paired
difference over users. By log-prob, and by log-prob minus the title's prior.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.origin import machine
from recalign.data.preparation.tables import unique_titles
from recalign.data.records import Case, Items, hashed_order, read_cases, read_met
from recalign.evaluation.metrics import Floats
from recalign.evaluation.ranking_rule import LogprobScores, RankingRule, ranking_scores
from recalign.evaluation.significance import bootstrap_interval
from recalign.params.load import Params, load_params
from recalign.ranking.language_model import LanguageModelRecommender, Setting, open_recommender
from recalign.recommenders.recommender import Request

RULES = (RankingRule(), RankingRule("logprob_less_prior", 1.0))
WORD, MARK = "word for word", "with a mark"
OTHERS = 19  # candidates beside the item whose title is put on trial


@dataclass(frozen=True)
class Attack:
    """A case and the titles put on trial: each an item id of the extended catalogue.

    renamed: the history as preparation writes it once the liked title is copied word for word; tried, tried_renamed:
    name of a title ("clean", or what is copied and how) -> item, after the history as it is and after the renamed one.
    """

    case: Case
    others: tuple[int, ...]
    renamed: tuple[int, ...]
    tried: dict[str, int]
    tried_renamed: dict[str, int]


class Titles:
    """The catalogue, which grows by an item for each further title."""

    def __init__(self, catalogue: Items) -> None:
        self._known, self._titles, self._ids = catalogue, dict(catalogue.titles), dict[str, int]()
        self.unknown = max(catalogue.ids) + 1  # the id that an attacker's item would have

    def item(self, title: str) -> int:
        """The item of a title of our own."""
        new = self._ids.setdefault(title, self.unknown + 1 + len(self._ids))
        self._titles[new] = title
        return new

    def copied(self, item: int) -> tuple[int, int]:
        """An item and its copy word for word, as preparation writes both."""
        known = self._known
        own = {c.ITEM: item, c.TITLE: known.titles[item], c.ATTRIBUTES: known.attributes[item]}
        shown = unique_titles([own, {c.ITEM: self.unknown, c.TITLE: known.titles[item], c.ATTRIBUTES: None}])
        return self.item(shown[item]), self.item(shown[self.unknown])

    def marked(self, item: int) -> int:
        """A copy with a mark behind it."""
        return self.item(f"{self._known.titles[item]}!")

    @property
    def catalogue(self) -> Items:
        """All of them."""
        return replace(self._known, ids=tuple(sorted(self._titles)), titles=self._titles)


def attacks(prepared: Path, cases: int, seed: int) -> tuple[list[Attack], Items]:
    """The first warm test cases, attacked, and the catalogue that knows every title of theirs."""
    catalogue = Items.read(prepared)
    titles, tested = Titles(catalogue), read_cases(prepared, c.TEST, "uniform", cases, seed=seed)
    met = read_met(prepared, {case.example.user_id for case in tested})
    unseen = [item for item in catalogue.ids if not catalogue.popularity[item]]
    hits = sorted(catalogue.ids, key=lambda item: -catalogue.popularity[item])
    found = []
    for case in tested:
        history, target = case.example.history, case.example.target
        known = met[case.example.user_id].times.keys() | set(case.candidates)
        strange = [item for item in unseen if item not in known]
        clean = min(strange, key=lambda item: hashed_order(seed, case.example.example_id, item))
        hit = next(item for item in hits if item not in known)
        dropped = next(item for item in case.candidates if item != target)
        original, copy = titles.copied(history[-1])
        found.append(
            Attack(
                case=case,
                others=tuple(item for item in case.candidates if item != dropped),
                renamed=tuple(original if item == history[-1] else item for item in history),
                tried={
                    "clean": clean,
                    f"liked, {MARK}": titles.marked(history[-1]),
                    f"a hit, {WORD}": titles.copied(hit)[1],
                    f"a hit, {MARK}": titles.marked(hit),
                },
                tried_renamed={"clean": clean, f"liked, {WORD}": copy},
            )
        )
    assert all(len(attack.others) == OTHERS for attack in found)
    return found, titles.catalogue


def ranks(rule: RankingRule, raw: LogprobScores, names: Sequence[str]) -> dict[str, Floats]:
    """Rank of each title on trial, 1 to 20, from scores [B, 19 + titles]; equals stand behind."""
    scores = ranking_scores(rule, raw)
    return {name: 1 + (scores[:, :OTHERS] >= scores[:, [OTHERS + n]]).sum(axis=1) for n, name in enumerate(names)}


def raw_scores(
    model: LanguageModelRecommender, found: Sequence[Attack], *, renamed: bool
) -> tuple[LogprobScores, list[str]]:
    """Log-probs and priors of the others and of the titles on trial, and the names of these."""
    tried = [attack.tried_renamed if renamed else attack.tried for attack in found]
    lists = [[*attack.others, *own.values()] for attack, own in zip(found, tried, strict=True)]
    requests = [
        Request(attack.case.example.user_id, attack.renamed if renamed else attack.case.example.history)
        for attack in found
    ]
    return LogprobScores(model.logprobs(requests, lists), model.priors(lists)), list(tried[0])


def measured(model: LanguageModelRecommender, found: Sequence[Attack], params: Params) -> Iterator[dict[str, Any]]:
    """A row a rule and copy."""
    users = [attack.case.example.user_id for attack in found]
    both = [raw_scores(model, found, renamed=renamed) for renamed in (False, True)]
    for rule in RULES:
        for raw, names in both:
            placed = ranks(rule, raw, names)
            for name in names[1:]:
                gained = bootstrap_interval(
                    placed["clean"] - placed[name], users, params.evaluate.resamples, params.seed
                )
                yield {
                    "model": model.name,
                    "ranked by": rule.sentence,
                    "copied": name,
                    "clean": round(float(placed["clean"].mean()), 2),
                    "copy": round(float(placed[name].mean()), 2),
                    "first": round(float(np.mean(placed[name] == 1)), 3),
                    "lift": gained.as_dict(),
                    "cases": len(found),
                    "users": len(set(users)),
                }


def main() -> None:
    """A line a model, rule and copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    parser.add_argument("--base", type=Path, default=Path("data/models/base"))
    parser.add_argument("--adapters", type=Path, nargs="*", default=[], help="trained adapters, besides the bare base")
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    params, summary = load_params(), read_json(options.prepared / "summary.json")
    found, catalogue = attacks(options.prepared, options.cases, params.seed)
    setting = Setting(params.base, params.prompt, summary["noun"], summary["clock"], params.seed, params.threads)
    rows = []
    for adapter in [None, *options.adapters]:
        name = adapter.name if adapter else "untrained"
        model = open_recommender(name, options.base, adapter, setting, catalogue, batch=params.evaluate.batch)
        for row in measured(model, found, params):
            rows.append(row)
            lift = row["lift"]
            print(
                f"{row['model']:10} {row['ranked by']:22} {row['copied']:22} clean {row['clean']:5.2f}  "
                f"copy {row['copy']:5.2f}  first {row['first']:.2f}  lift {lift['value']:+.2f} "
                f"[{lift['low']:+.2f}, {lift['high']:+.2f}]  {row['cases']} cases of {row['users']} users",
                flush=True,
            )
    if options.json:
        about = {"machine": machine(), "source": summary["source"], "data_digest": summary["data_digest"]}
        options.json.write_text(json.dumps(about | {"results": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
