"""What reranking for fairness costs: NDCG@10 against MGU over γ, in the whole catalogue, for several systems.

    python benchmarks/fairness.py --project work --systems item_knn ease sasrec --by popularity genre --out fairness.md

Reads the project in --project: `data/prepared` as `recalign prepare` made it and `data/baselines` as `recalign
baselines` did, with its params.yaml. GU and the strength γ are chosen on all warm validation cases (at most as many as
stage fuse weighs on), the figures are of all warm test cases: whole catalogue minus what the user met, ten items shown,
groups' history from the train events. "fusion" is that of the named systems, weighted on the validation cases as stage
fuse does; no language model is in it. --adapter measures one too, on the first --cases of both kinds:
it reads every title of the catalogue for each. Differences are paired, intervals 95 % over users. "chosen" marks γ of
validation; every other line of the curve says what the test cases would have given, and chooses nothing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from recalign.common.artifacts import read_json
from recalign.common.item_groups import Grouping, group_items
from recalign.common.origin import machine
from recalign.common.progress import track
from recalign.data.records import read_met
from recalign.evaluation.exposure import excess_of, fairness_gain, measure_exposure, unfairness
from recalign.evaluation.metrics import metric_values
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import paired_difference, signed
from recalign.evaluation.systems import FUSION, Choice
from recalign.params.load import Params, load_params
from recalign.project import Project
from recalign.ranking.exposure import choose, reranked_ranks
from recalign.ranking.fused import FusedRecommender
from recalign.ranking.fusion import Fusion
from recalign.ranking.language_model import Setting
from recalign.ranking.language_model import open_recommender as open_adapter
from recalign.ranking.recommenders import open_recommender
from recalign.ranking.trial import Ranker, Trial, Trials, read_trials, scores_of, whole_catalogue
from recalign.recommenders.recommender import Request

GAMMAS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
HEAD = "| system | γ | NDCG@10 | minus γ = 0 | MGU | DGU | MGU minus γ = 0 | DGU minus γ = 0 | coverage | lift |"


def ranker_of(name: str, systems: Sequence[str], project: Project, trials: Trials) -> Ranker:
    """A fitted recommender, or the fusion of them all."""
    if name != FUSION:
        return open_recommender(name, project, trials.catalogue)
    parts = {own: open_recommender(own, project, trials.catalogue) for own in systems}
    asked = trials.weighing
    told = {own: scores_of(part, asked.requests, asked.candidates) for own, part in parts.items()}
    fusion = Fusion.fit(told, asked.judged)
    print(f"fusion: {fusion.sentence}", flush=True)
    return FusedRecommender(fusion, parts, trials.catalogue)  # type: ignore[arg-type]  # named by the reader


@dataclass
class Remembered:
    """A ranker that scores no request twice: a language model takes seconds for each."""

    name: str
    inner: Ranker
    kept: dict[Request, torch.Tensor] = field(default_factory=dict)

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, items] over the catalogue."""
        assert candidates is None
        for request in track(requests, len(requests), "scoring the whole catalogue", "cases"):
            if request not in self.kept:
                self.kept[request] = self.inner.scores([request], None)[0]
        return torch.stack([self.kept[request] for request in requests])


def language_model(adapter: Path, params: Params, project: Project, trials: Trials) -> Remembered:
    """An adapter over the whole catalogue, by the log-prob."""
    summary = read_json(project.prepared / "summary.json")
    setting = Setting(params.base, params.prompt, summary["noun"], summary["clock"], params.seed, params.threads)
    name = f"llm-{adapter.name}"
    return Remembered(name, open_adapter(name, project.base, adapter, setting, trials.catalogue))


def lines_of(
    ranker: Ranker, choice: Choice, test: Trial, grouping: Grouping, params: Params, trials: Trials
) -> list[str]:
    """A line a strength, on the test cases."""
    found = reranked_ranks(ranker, choice, test, trials.catalogue, grouping, GAMMAS)
    plain = found[0.0]
    return [_line(gamma, own, plain, choice, grouping, params, trials) for gamma, own in found.items()]


def _line(
    gamma: float, ranks: SystemRanks, plain: SystemRanks, choice: Choice, grouping: Grouping, params: Params,
    trials: Trials,
) -> str:  # fmt: skip
    resamples, seed = params.evaluate.resamples, params.seed
    cost = paired_difference(ranks, plain, CHOSEN_BY, resamples, seed)
    gain = fairness_gain(ranks, plain, grouping, resamples, seed)
    (mgu,), (dgu,) = unfairness(excess_of(ranks, grouping).mean(axis=0)[None])
    held = measure_exposure(ranks, trials.catalogue.popularity, {}, resamples, seed)
    assert held is not None
    name = f"**{choice.system}**, chosen" if gamma == choice.gamma else choice.system
    if gamma == 0.0:
        told = f"{metric_values(CHOSEN_BY, ranks.ranks).mean():.4f} | | {mgu:.4f} | {dgu:.4f} | | "
    else:
        told = (
            f"{metric_values(CHOSEN_BY, ranks.ranks).mean():.4f} | {_four(cost)} | {mgu:.4f} | {dgu:.4f} | "
            f"{_four(gain.mgu)} | {_four(gain.dgu)}"
        )
    return f"| {name} | {gamma:g} | {told} | {held.coverage:.3f} | {signed(held.lift)} |"


def _four(interval: object) -> str:
    value, low, high = (f"{getattr(interval, part):+.4f}".replace("-", "−") for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main() -> None:
    """Read the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--systems", nargs="+", default=["item_knn", "ease", "sasrec"])
    parser.add_argument("--by", nargs="+", default=["popularity", "genre"])
    parser.add_argument("--adapter", type=Path, help="a language model's adapter, which is measured too")
    parser.add_argument("--cases", type=int, nargs=2, default=(96, 120), help="its validation and test cases")
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--out", type=Path, help="write the Markdown there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    project = Project(arguments.project)
    params = load_params(arguments.project / "params.yaml")
    every = {"validation_cases": 5000, "test_cases": 5000, "cold_cases": 0, "full_catalogue_cases": 0}
    fairness = {"gammas": GAMMAS, "tolerance": arguments.tolerance}
    params = params.model_copy(
        update={
            "evaluate": params.evaluate.model_copy(update=every),
            "fairness": params.fairness.model_copy(update=fairness),
        }
    )
    trials = read_trials(params, project.prepared, project.profiles)
    met = read_met(project.prepared, {case.example.user_id for case in trials.weighing.cases})
    validation, test = whole_catalogue(trials.weighing, trials.catalogue, None, met), trials.full[0]
    summary = read_json(project.prepared / "summary.json")
    users = [len(set(trial.users)) for trial in (validation, test)]
    said = (
        f"{summary['source']}, split {params.prepare.split}, data {summary['data_digest'][:8]}, cases "
        f"{test.digest[:8]}: {len(validation.cases):,} validation cases of {users[0]} users, {len(test.cases):,} test "
        f"cases of {users[1]} users, {len(trials.catalogue.ids):,} items; tolerance {arguments.tolerance:g}; "
        f"{machine()}"
    )
    parts = [said]
    rankers = {name: ranker_of(name, arguments.systems, project, trials) for name in [*arguments.systems, FUSION]}
    whole: dict[str, tuple[Ranker, Trial, Trial]] = {
        name: (ranker, validation, test) for name, ranker in rankers.items()
    }
    if arguments.adapter:
        few, tested = validation.part(0, arguments.cases[0]), test.part(0, arguments.cases[1])
        model = language_model(arguments.adapter, params, project, trials)
        whole[model.name] = (model, few, tested)
        parts.append(f"{model.name}: {len(few.cases)} validation, {len(tested.cases)} test cases")
    for by in arguments.by:
        grouping = group_items(by, trials.catalogue.popularity, trials.catalogue.attributes)
        parts += ["", f"By {by}, {len(grouping.names)} groups", "", HEAD, "|---" + "|---:" * 9 + "|"]
        for ranker, chosen_on, measured_on in whole.values():
            choice = choose(ranker, chosen_on, trials.catalogue, grouping, params)
            parts += lines_of(ranker, choice, measured_on, grouping, params, trials)
            print(f"{by}: {choice.system} γ {choice.gamma:g}", flush=True)
    text = "\n".join(parts) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
