"""Stage report: metrics.json, plots, the table on the terminal and report.html, all from ranks.parquet."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recalign.audit.audit import AUDIT, ProbeContest
from recalign.common import columns as c
from recalign.common.artifacts import read_json, write_json, write_text
from recalign.common.columns import TEST, VIEWS
from recalign.common.item_groups import group_items
from recalign.common.origin import git_revision
from recalign.common.run_log import print_stages
from recalign.data.ids import RawIds
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.data.simulator import read_tastes
from recalign.evaluation.injection import INJECTION_LIFT, INJECTIONS, injection_lifts, read_injections
from recalign.evaluation.ranks import CATALOGUE, CATALOGUE_CASES, SAMPLED, UNKNOWN, SystemRanks, read_system_ranks
from recalign.evaluation.scorecard import (
    MATCHING,
    Figure,
    Provenance,
    Recorder,
    Scorecard,
    as_document,
    build_scorecard,
)
from recalign.evaluation.systems import SYSTEMS, Choice, Cost, read_choices, read_systems
from recalign.params.load import Params
from recalign.preferences.inference.truth import learned_values
from recalign.preferences.profiles.profiles import every_statement, read_profiles
from recalign.preferences.tastes.ledger import ledger_of
from recalign.preferences.tastes.text import one_line
from recalign.project import Project
from recalign.report.fairness import Reranked, compare_reranked, fairness_plot, fairness_section
from recalign.report.findings import Findings, find, probe, read_known
from recalign.report.plots import (
    Curve,
    Drawing,
    cost_plot,
    displacement,
    drift_plot,
    interval_plot,
    learning_plot,
    planted_plot,
    read_curve,
    to_csv,
)
from recalign.report.provenance import lineage, next_commands, param_lines, reproduce_commands
from recalign.report.report import TITLES, Evidence, report_page, title_of
from recalign.report.second_view import SecondView, second_view, second_view_metrics, second_view_sections
from recalign.report.sections import Claimed, Lifts, injection_note, injection_section
from recalign.report.table import by_value, print_left_out, print_scorecard
from recalign.report.verdict import answer, outcome, system_costs, verdict

log = logging.getLogger(__name__)

LEDGERS = 3  # users whose claims are listed
PEOPLE = 20  # users in the plot of learned against planted tastes
MANIFESTS = ("uniform", "popularity", CATALOGUE, CATALOGUE_CASES)  # in the report's order; the first is the headline
KEYS = {
    "uniform": "systems",
    "popularity": "popularity_manifest",
    CATALOGUE: "full_catalogue",
    CATALOGUE_CASES: "full_catalogue_with_llms",
}


def report(params: Params, project: Project = Project()) -> None:
    """Write metrics.json, scorecard.json, plots/ and report.html into reports/; print table, verdict and next commands.

    Every figure is an aggregate of ranks.parquet and of the examples and items it names. Raises RecalignError when an
    input is missing.
    """
    about, systems = read_json(project.ranks / "cases.json"), read_systems(project.ranks / SYSTEMS)
    groups = _groups(project.ranks, about)
    contests = {
        place: probe(params, project.prepared, own, main=place == 0)
        for place, own in enumerate(groups)
        if own[0].protocol == SAMPLED
    }
    cards = [_audited(build_scorecard(own, systems, params.evaluate.resamples, params.seed), contests.get(place))
             for place, own in enumerate(groups)]  # fmt: skip
    cards = [replace(card, random_model=about.get("random_model", False)) for card in cards]
    injected = injection_lifts(read_injections(project.ranks / INJECTIONS), params.evaluate.resamples, params.seed)
    told = injection_note(injected, cards[0].llm)
    cards[0] = replace(cards[0], notes=(*_not_fitted(about), *cards[0].notes, *told))
    known = read_known(project.prepared, about["split"], params.fairness.by)
    main_view = [own for own in groups if own[0].view == cards[0].view]
    findings = find(params, main_view, known, about["candidates"])
    choices = read_choices(project.ranks)
    reranked = _reranked(params, project.prepared, choices, main_view)
    curves = [read_curve("sft", project.sft / "curve.csv")]
    curves += [read_curve(name, project.align / name / "curve.csv") for name in params.align.objectives]
    drawings = [interval_plot(cards[0], about["candidates"]), learning_plot(curves), *map(drift_plot, curves[1:])]
    ordered = {row.system: systems[row.system] for row in by_value(cards[0])}
    costs = system_costs(params, ordered, project)
    fitting = {cost.system: cost.fitting for cost in costs if cost.fitting is not None}
    truth, users = project.profiles / "truth.json", RawIds.of_users(project.validated)
    every = [system for group in groups for system in group]
    second = second_view(
        project.ranks / "generations.parquet", every, cards[0].manifest, params.evaluate.resamples, params.seed
    )
    evidence = Evidence(
        cards=cards,
        about=about,
        systems=systems,
        drawings=drawings,
        audits=[(title_of(cards[place]), contest.audit) for place, contest in contests.items()],
        warnings=_warnings(curves[1:], project.align),
        slices=findings.slices,
        exposures={TITLES[manifest]: own for manifest, own in findings.exposures.items()},
        left_out=about.get("views_left_out", {}),
        shares=findings.shares,
        costs=costs,
        cost_plot=cost_plot(cards[0], fitting) if fitting else None,
        planted=_planted(params, project, known.attribute) if truth.is_file() else None,
        examples=[own | {c.USER: users.shown(own[c.USER])} for own in read_json(project.ranks / "examples.json")],
        quality=read_json(project.validated / "summary.json"),
        truth=read_json(truth) if truth.is_file() else None,
        lineage=lineage(params, about, systems, project),
        params=param_lines(params),
        reproduce=reproduce_commands(params, git_revision()),
        next_commands=next_commands(about, users),
        second=second_view_sections(second),
        fairness=fairness_section(choices, reranked),
        injected=injection_section(injected),
        claims=_claims(params, project, about["noun"], users),
        registry=params.registry,
    )
    metrics = metrics_of(cards, about, findings) | second_view_metrics(second) | _audit_metrics(cards, contests)
    if injected:
        metrics[INJECTION_LIFT] = {
            system: {position: lift.as_dict() for position, lift in own.items()} for system, own in injected.items()
        }
    if reranked:
        metrics["fairness"] = {row.system: row.as_dict() for row in reranked}
        drawings.append(fairness_plot(choices))
    write_json(project.reports / "metrics.json", metrics)
    write_json(project.reports / "scorecard.json", _scorecard(cards, findings, costs, second, injected, about))
    _write_plots(project.reports / "plots", cards[0], curves, drawings)
    write_text(project.reports / "report.html", report_page(evidence))
    print_stages(
        {
            "baselines": params.recommenders.systems,
            "align": params.align.objectives,
            "rank": list(systems),
        }
    )
    _print(cards, about, project.reports / "report.html", evidence.next_commands, evidence.lineage.get("profiles"))


def _reranked(
    params: Params, prepared: Path, choices: Mapping[str, Choice], groups: Sequence[Sequence[SystemRanks]]
) -> list[Reranked]:
    """Reranked systems against what they were; none where nothing was reranked."""
    if not choices:
        return []
    items = Items.read(prepared)
    grouping = group_items(next(iter(choices.values())).by, items.popularity, items.attributes)
    return compare_reranked(choices, groups, grouping, params.evaluate.resamples, params.seed)


def _audited(card: Scorecard, contest: ProbeContest | None) -> Scorecard:
    """The card with what the audit of its candidate lists says."""
    if contest is None:
        return card
    return replace(card, unbeaten=frozenset(contest.unbeaten), notes=tuple(contest.lines))


def _not_fitted(about: Mapping[str, Any]) -> list[str]:
    """A line a recommender that was asked for and is in no table."""
    return [f"{system} is left out: {why}." for system, why in about.get("not_fitted", {}).items()]


def _audit_metrics(cards: Sequence[Scorecard], contests: Mapping[int, ProbeContest]) -> dict[str, Any]:
    """The audit of the main table's lists, which the gate reads, and those of the others by view, then manifest."""
    first, *rest = contests
    others: dict[str, dict[str, Any]] = {}
    for place in rest:
        others.setdefault(cards[place].view, {})[cards[place].manifest] = contests[place].as_dict()
    return {AUDIT: contests[first].as_dict(), "other_audits": others}


def _warnings(curves: Sequence[Curve], align: Path) -> list[str]:
    """What went wrong while training the aligned adapters, in sentences."""
    found = [displacement(curve, read_json(align / curve.stage / "training.json").get("best_step")) for curve in curves]
    return [warning for warning in found if warning]


def _groups(ranks: Path, about: Mapping[str, Any]) -> list[list[SystemRanks]]:
    """The systems of each view and manifest, those of the main table first."""
    every = read_system_ranks(ranks / "ranks.parquet", about["manifests"])
    groups = [
        [system for system in every if (system.view, system.manifest) == (view, manifest)]
        for view in (UNKNOWN, *VIEWS)
        for manifest in MANIFESTS
    ]
    return [group for group in groups if group]


def _scorecard(
    cards: Sequence[Scorecard],
    findings: Findings,
    costs: Sequence[Cost],
    second: SecondView,
    injected: Lifts,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What scorecard.json holds: every figure of the report as a record, but for seconds, which never repeat."""
    shared = {field: about[field] for field in ("source", "split", "data_digest")}
    provenance = Provenance(**shared, git_revision=git_revision())
    figures: list[Figure] = []
    for place, card in enumerate(cards):
        recorder = Recorder(card, provenance)
        figures += recorder.metrics()
        if card.view == cards[0].view:
            figures += recorder.exposures(findings.exposures.get(card.manifest, {}))
        if place == 0:
            figures += recorder.slices(findings.slices) + recorder.shares(findings.shares) + recorder.costs(costs)
            figures += recorder.generations(second.generated) + recorder.agreements(second.all_agreements)
            figures += recorder.injections(injected)
    told = {"matching_rule": MATCHING, "manifests": about["manifests"], "views": about.get("views", {})}
    told |= {
        "answer": answer(cards[0]),
        "outcome": outcome(cards[0]),
        "verdict": verdict(cards[0]),
        "random_model": cards[0].random_model,
    }
    return as_document(figures, {**asdict(provenance), **told, "views_left_out": about.get("views_left_out", {})})


def _planted(params: Params, project: Project, attribute: str | None) -> Drawing | None:
    """The first users' planted tastes beside what their profiles claim, on the items' first attribute."""
    tastes = project.validated / "truth.parquet"
    cutoff = Prepared(project.prepared).cutoff(TEST)
    if not attribute or not tastes.is_file() or cutoff is None:
        return None
    own = [
        made for (split, _), made in read_profiles(project.profiles, params.profiles.engine).items() if split == TEST
    ]
    learned = learned_values(own, read_tastes(tastes), cutoff, attribute)
    if not any(person.planted for person in learned):
        return None
    return planted_plot([(f"user {own.user_id}", own.planted, own.claimed) for own in learned[:PEOPLE]], attribute)


def _claims(params: Params, project: Project, noun: str, users: RawIds) -> list[Claimed]:
    """What is claimed of the first users of the test split, as their profiles were inferred."""
    if not (project.profiles / "profiles.parquet").is_file():
        return []
    items, made = Items.read(project.prepared), read_profiles(project.profiles, params.profiles.engine)
    statements = every_statement(items, noun)
    told = [own for (split, _), own in sorted(made.items()) if split == TEST and own.claims]
    return [
        Claimed(
            str(users.shown(own.user_id)), entry.statement, str(entry.about), entry.score, entry.by,
            tuple(one_line(items.titles[item]) for item in entry.supports),
        )
        for own in told[:LEDGERS]
        for entry in ledger_of(own.claims, own.engine, own.evidence, statements, ()).entries
    ]  # fmt: skip


def metrics_of(cards: Sequence[Scorecard], about: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """What metrics.json holds: a system's metrics with their bounds, paired differences, and whom they are about.

    The warm view's stand at the top, those of each other one under `views`.
    """
    main = cards[0]
    metrics = _by_manifest(cards, main.view)
    others = {card.view: card for card in reversed(cards) if card.view != main.view}
    metrics["views"] = {
        view: {**_by_manifest(cards, view), "about": {"cases": others[view].cases, "users": others[view].users}}
        for view in VIEWS
        if view in others
    }
    metrics["views_left_out"] = about.get("views_left_out", {})
    metrics["paired"] = {f"{pair.first}_less_{pair.second}": pair.interval.as_dict() for pair in main.comparisons}
    if findings.shares:
        metrics["oracle_share"] = {system: told.as_dict() for system, told in findings.shares.items()}
    if shown := findings.exposures.get(main.manifest):
        metrics["exposure"] = {system: own.as_dict() for system, own in shown.items()}
    metrics["best"] = {"baseline": main.baseline, "llm": main.llm}
    metrics["about"] = {
        "source": about["source"],
        "split": about["split"],
        "view": main.view,
        "protocol": main.protocol,
        "manifest": main.manifest,
        "manifest_digest": main.digest,
        "cases": main.cases,
        "users": main.users,
    }
    return metrics


def _by_manifest(cards: Sequence[Scorecard], view: str) -> dict[str, Any]:
    """The metrics of a view's cards: manifest's key -> system -> metric."""
    return {
        KEYS[card.manifest]: {
            row.system: {metric: interval.as_dict() for metric, interval in row.metrics.items()} for row in card.rows
        }
        for card in cards
        if card.view == view
    }


def _write_plots(folder: Path, card: Scorecard, curves: Sequence[Curve], drawings: Sequence[Drawing]) -> None:
    metrics: list[dict[str, object]] = [
        {"system": row.system, "metric": metric, **interval.as_dict()}
        for row in card.rows
        for metric, interval in row.metrics.items()
    ]
    steps: list[dict[str, object]] = [{"stage": curve.stage, **row} for curve in curves for row in curve.rows]
    write_text(folder / "metrics.csv", to_csv(metrics, ["system", "metric", "value", "low", "high"]))
    write_text(folder / "training.csv", to_csv(steps, ["stage", "step", "examples", "loss", "validation_loss"]))
    drift = ["chosen_logp_drift", "rejected_logp_drift", "reward_accuracy"]
    aligned = [row for row in steps if row["stage"] != "sft"]
    write_text(folder / "drift.csv", to_csv(aligned, ["stage", "step", "examples", *drift]))
    for drawing in drawings:
        write_text(folder / f"{drawing.name}.svg", _standalone(drawing))


def _standalone(drawing: Drawing) -> str:
    """The drawing as a file of its own: a viewer has no page to take a colour from, so it gets grey, seen on both."""
    return drawing.svg.replace("<svg", '<svg style="color: #777"', 1)


def _print(
    cards: Sequence[Scorecard], about: Mapping[str, Any], page: Path, commands: Sequence[str], profiles: str | None
) -> None:
    print_scorecard(cards[0], about["source"])
    for sentence in (answer(cards[0]), *verdict(cards[0])):
        print(sentence)
    for card in cards[1:]:
        if card.view != cards[0].view and card.manifest == cards[0].manifest:
            print()
            print_scorecard(card, about["source"])
            print(verdict(card)[0])
    print_left_out(about.get("views_left_out", {}))
    if profiles:
        print(f"\nProfiles {profiles}")
    print(f"\nReport: {page}\nNext:")
    for command in commands:
        print(f"  {command}")
