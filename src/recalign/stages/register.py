"""Register an adapter or the fusion in MLflow, and let the gate judge it; no stage, for its effect lies outside."""

import logging
from pathlib import Path

from recalign import layout
from recalign.artifacts import read_json
from recalign.evaluation.scorecard import FUSION
from recalign.params import Params
from recalign.registry.contest import champion_ranks, evaluated_ranks, unbeaten_probe
from recalign.registry.gate import BAR, judge
from recalign.registry.lineage import check_params_ran
from recalign.registry.log import find_version, log_version
from recalign.registry.package import best_objective, package_digest, settings_of
from recalign.registry.promotion import CHAMPION, aliased, is_judged, settle
from recalign.registry.tracking import connect

log = logging.getLogger(__name__)


def register(params: Params, objective: str | None = None, *, root: Path = Path(), home: Path | None = None) -> str:
    """Register the adapter of `objective`, or the "fusion"; the outcome in a sentence.

    None: what registry.system names, the best adapter by registry.metric on validation or the fusion.

    root: the project whose outputs are registered; home: the checkout whose registry it is, where that is another one.
    A version becomes `challenger`, and `champion` where the gate accepts it. The same adapter again changes nothing, so
    that a roll-back is not undone. Raises RecalignError where an output is missing or params.yaml has changed since.
    """
    check_params_ran(root)
    chosen = objective or _candidate(params, root)
    settings = settings_of(params, chosen, root)
    ranks, barred = evaluated_ranks(root, settings.system), unbeaten_probe(root, settings.system)
    digest = package_digest(settings, root)
    home, name = home or root, params.registry.model
    client = connect(home)  # after all that may be missing: a failed registration leaves no empty registry
    version = find_version(client, name, digest)
    if version is not None and is_judged(client, name, version):
        this = chosen if chosen == FUSION else f"adapter ({chosen})"
        return _say(f"{name}: this {this} is version {version} already; nothing was moved")
    if version is None:
        version = log_version(client, params, chosen, settings, digest, ranks, root)
    champion = aliased(client, name, CHAMPION)
    if champion is None:
        verdict = judge(params, ranks, evaluated_ranks(root, BAR), BAR, first=True, barred=barred)
    else:
        held = champion_ranks(client, params, champion, ranks, root, home)
        verdict = judge(params, ranks, held, f"version {champion}", first=False, barred=barred)
    settle(client, name, version, verdict)
    stays = "is champion" if verdict.accepted else "stays challenger"
    return _say(f"{name}: version {version} ({chosen}) {stays}: {verdict.reason}")


def _candidate(params: Params, root: Path) -> str:
    if params.registry.system == FUSION:
        return FUSION
    return best_objective(params, read_json(root / layout.RANKS / "systems.json"))


def _say(outcome: str) -> str:
    log.info(outcome)
    return outcome
