"""Which version is live: the aliases of the registered model, moved by the gate, by a person here or in MLflow's UI.

The alias `champion` alone decides, and is read afresh each time. Beside it the registered model keeps the list of
champions (a tag), from which a roll-back knows where to go, however often it is asked.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from recalign.common.errors import RecalignError
from recalign.params.load import Params
from recalign.project import REGISTRY_SCHEME
from recalign.registry.gate import NotJudged, Silent, Verdict
from recalign.registry.tracking import answering_soon, connect, reached, redacted

log = logging.getLogger(__name__)
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous_champion"
CHAMPIONS = "champions"  # tag of the registered model: JSON list of versions, the present champion last
REASON = "moved_because"  # tag of a version: why it is champion, or is no more
WAS = "was_champion_because"  # tag of a version that is champion no more
VERDICT, PAGE = "gate.json", "gate.html"  # files of a run; the page is in reports/ of the project, too
OVERRULED = "moved_although"  # tag of a version: what spoke against moving the alias to it, which a person overruled
GATE = "gate"  # tag of a version: the decision, champion or challenger, or that there is none yet
UNDECIDED = "not judged"
WITHIN = "gate_within_margin"  # tag of a champion that did not win outright: its bar, or BY_HAND once a person chose it
BY_HAND = "by hand"
KEPT = 20  # champions remembered
LONGEST_KEY = 200  # characters of a tag's name


class NothingRegisteredError(RecalignError):
    """The registry answers, and holds neither a champion nor a challenger."""


@dataclass(frozen=True)
class Current:
    """The version that recommends, and the alias it was found by."""

    version: str
    alias: str


def registered_model(client: MlflowClient, name: str) -> RegisteredModel | None:
    """The registered model with its aliases and tags; None before the first registration."""
    found = client.search_registered_models(f"name = '{name}'", max_results=1)
    return client.get_registered_model(name) if found else None


def aliased(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version under an alias, as a string; None where there is none."""
    model = registered_model(client, name)
    version = model.aliases.get(alias) if model else None
    return None if version is None else str(version)


def current(params: Params, home: Path = Path()) -> Current:
    """The version to recommend with: the champion, else the challenger, which is said in the log.

    Raises RecalignError where nothing is registered.
    """
    client, name = connect(home), params.registry.model
    with reached(home):
        if past := champions(client, name):
            return Current(past[-1], CHAMPION)
        if version := aliased(client, name, CHALLENGER):
            log.info("%s has no champion yet; the challenger, version %s, stands in", name, version)
            return Current(version, CHALLENGER)
    raise NothingRegisteredError(
        f"registry.model {name!r} has no champion and no challenger; run 'recalign register' first"
    )


def champions(client: MlflowClient, name: str) -> list[str]:
    """The champions so far, the present one last. One that was made in MLflow's own UI is taken in here.

    Versions that were deleted since are left out. Where the present one was, the champion before it counts, which is
    said in the log; empty where there never was a champion, or none is left.
    """
    model = registered_model(client, name)
    if model is None:
        return []
    existing = {str(version.version) for version in client.search_model_versions(f"name = '{name}'")}
    past = [version for version in json.loads(model.tags.get(CHAMPIONS, "[]")) if version in existing]
    now = aliased(client, name, CHAMPION)
    if now is None and past:
        log.warning(
            "%s: no version has the alias %s; the champion before, version %s, counts ('recalign promote' chooses)",
            name, CHAMPION, past[-1],
        )  # fmt: skip
    if now is None or past[-1:] == [now]:
        return past
    return [*past, now]


def bars(client: MlflowClient, name: str) -> list[str]:
    """The versions that a challenger must beat: the champion, and where that is another one the anchor; or none.

    The anchor is the last champion that won outright or that a person made. Each later one came within registry.margin
    of it, so that losses do not add up from one champion to the next.
    """
    past = champions(client, name)
    firm = (v for v in reversed(past) if client.get_model_version(name, v).tags.get(WITHIN, BY_HAND) == BY_HAND)
    return list(dict.fromkeys([past[-1], next(firm, past[0])])) if past else []


def won_outright(client: MlflowClient, name: str, version: str) -> bool:
    """Whether the gate made a version champion because it was better, not only within the margin."""
    tags = client.get_model_version(name, version).tags
    return tags.get(GATE) == CHAMPION and WITHIN not in tags


def crown(client: MlflowClient, name: str, version: str, reason: str) -> None:
    """Make a version the champion; the present one becomes `previous_champion`."""
    past = champions(client, name)
    if not past or past[-1] != version:
        _set_champions(client, name, [*past, version][-KEPT:])
        _retire(client, name, past, f"replaced by version {version}: {reason}")
    else:
        _set_champions(client, name, past[-KEPT:])
    client.set_model_version_tag(name, version, REASON, reason)


def is_judged(client: MlflowClient, name: str, version: str) -> bool:
    """Whether the gate has decided on a version; False after a kill between registration and verdict."""
    decided = client.get_model_version(name, version).tags.get(GATE, UNDECIDED) != UNDECIDED
    return decided or version == aliased(client, name, CHAMPION)


def leave_unjudged(client: MlflowClient, name: str, version: str, verdict: NotJudged) -> None:
    """Keep with a version why it was not judged; it becomes challenger, and the champion stays what it is."""
    client.set_registered_model_alias(name, CHALLENGER, version)
    for tag, value in {f"{GATE}_reason": verdict.reason, f"{GATE}_bar": verdict.bar, GATE: UNDECIDED}.items():
        client.set_model_version_tag(name, version, tag, value)


def leave_silent(client: MlflowClient, name: str, version: str, verdict: Silent) -> None:
    """Keep with a version that it did not answer; it gets no alias, and the next registration tries it again."""
    for tag, value in {f"{GATE}_reason": verdict.reason, GATE: UNDECIDED}.items():
        client.set_model_version_tag(name, version, tag, value)


def settle(client: MlflowClient, name: str, version: str, verdict: Verdict) -> None:
    """Move the aliases as the gate decided, and keep its verdict with the version (tags) and its run (gate.json, and
    gate.html for a person)."""
    run_id = run_of(client, name, version)
    client.log_dict(run_id, verdict.as_dict(), VERDICT)
    client.log_text(run_id, gate_page(f"{name}, version {version}", verdict), PAGE)
    for guard in verdict.guards:
        key = re.sub(r"[^\w-]", "_", f"guard_{guard.name}")[:LONGEST_KEY]  # it may hold an attribute's name
        client.set_model_version_tag(name, version, key, guard.sentence)
    client.set_registered_model_alias(name, CHALLENGER, version)
    if verdict.accepted:
        if not verdict.outright:
            client.set_model_version_tag(name, version, WITHIN, verdict.bar)
        crown(client, name, version, f"gate: {verdict.reason}")
    decision = CHAMPION if verdict.accepted else CHALLENGER
    said = {"reason": verdict.reason, "manifest": verdict.manifest_digest, "bar": verdict.bar, "try": verdict.attempt}
    for tag, value in said.items():
        client.set_model_version_tag(name, version, f"{GATE}_{tag}", value)
    client.set_model_version_tag(name, version, GATE, decision)  # last: a version without it is judged again


def run_of(client: MlflowClient, name: str, version: str) -> str:
    """The id of the run that a version was registered from. Raises RecalignError where it has none."""
    run_id = client.get_model_version(name, version).run_id
    if not run_id:
        raise RecalignError(f"version {version} of {name} has no run; it was not registered by 'recalign register'")
    return str(run_id)


def promotable(client: MlflowClient, name: str, version: str, reason: str) -> str:
    """The version that a person may make champion for a reason.

    Raises RecalignError for a version that is not registered, or is the champion already, and without a reason.
    """
    wanted = _existing(client, name, version)
    if wanted == aliased(client, name, CHAMPION):
        raise RecalignError(f"version {wanted} of {name} is the champion already; nothing was moved")
    _stated(reason)
    return wanted


def promote(params: Params, version: str, reason: str, home: Path = Path(), over: str = "") -> None:
    """Make `version` the champion because of `reason`, which is kept with it; `commands.champion` asks before.

    over: what speaks against it and was overruled, kept with it too. Raises RecalignError as `promotable` does.
    """
    client, name = connect(home), params.registry.model
    with reached(home):
        wanted = promotable(client, name, version, reason)
        before = aliased(client, name, CHAMPION)
        _keep_overruled(client, name, wanted, over)
        crown(client, name, wanted, _stated(reason))
        if WITHIN in client.get_model_version(name, wanted).tags:
            client.set_model_version_tag(name, wanted, WITHIN, BY_HAND)
    log.info("%s: version %s is champion (before: %s), because %s", name, wanted, before or "none", reason)


def before_last(client: MlflowClient, name: str, reason: str) -> list[str]:
    """The champions, of which the last but one is rolled back to for a reason.

    Raises RecalignError where there are not two, and without a reason.
    """
    past = champions(client, name)
    if len(past) < 2:
        held = f"its only champion is version {past[0]}" if past else "it has no champion"
        raise RecalignError(f"{name} cannot be rolled back: {held}; 'recalign promote VERSION' chooses any version")
    _stated(reason)
    return past


def rollback(params: Params, reason: str, home: Path = Path(), over: str = "", back: str | None = None) -> str:
    """Give the alias back to the champion before the present one; returns its version. The reason is kept with it.

    over: as in `promote`; back: the version that was asked before, None: whichever it is. Raises RecalignError as
    `before_last` does, and where another version became champion since it was asked.
    """
    client, name = connect(home), params.registry.model
    with reached(home):
        past = before_last(client, name, reason)
        if back not in (None, past[-2]):
            raise RecalignError(
                f"{name} has another champion by now, version {past[-1]}, so the roll-back would go to version "
                f"{past[-2]} and not to {back}; no alias was moved; run it again where that is meant"
            )
        _keep_overruled(client, name, past[-2], over)
        _set_champions(client, name, past[:-1])
        _retire(client, name, past, f"rolled back to version {past[-2]}: {_stated(reason)}")
        client.set_model_version_tag(name, past[-2], REASON, f"rolled back from version {past[-1]}: {_stated(reason)}")
    log.info("%s: version %s is champion again (before: %s), because %s", name, past[-2], past[-1], reason)
    return past[-2]


def _keep_overruled(client: MlflowClient, name: str, version: str, over: str) -> None:
    """In a tag of the version; what was overruled when it was moved before is no longer what it stands on."""
    if over:
        client.set_model_version_tag(name, version, OVERRULED, over)
    elif OVERRULED in client.get_model_version(name, version).tags:
        client.delete_model_version_tag(name, version, OVERRULED)


def download_adapter(uri: str, home: Path = Path()) -> Path:
    """The adapter's folder of a registered version: models:/recalign@champion or models:/recalign/3.

    Beside it lie settings.json (how it ranks), items.parquet and, where it ranks by reward, the reference adapter.
    Raises RecalignError for a version or alias that is not registered.
    """
    return download_package(uri, home) / "adapter"


def pinned(uri: str, home: Path = Path()) -> str:
    """models:/NAME/VERSION of models:/NAME@ALIAS, which may move; any other URI as it is.

    Raises RecalignError for an alias that is not registered.
    """
    name, _, alias = uri.removeprefix(REGISTRY_SCHEME).partition("@")
    if not alias:
        return uri
    client = connect(home)
    try:
        with answering_soon():
            return f"{REGISTRY_SCHEME}{name}/{client.get_model_version_by_alias(name, alias).version}"
    except MlflowException as error:
        said = redacted(" ".join(str(error).split()))[:200]
        raise RecalignError(f"{uri} is not in the registry ({said}); 'recalign register' adds a version") from None


def download_package(uri: str, home: Path = Path()) -> Path:
    """All that was registered with a version, as `registry.package` writes it."""
    import mlflow

    from recalign.ranking.package import SETTINGS

    connect(home)
    try:
        with answering_soon():
            package = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)) / "artifacts" / "package"
    except (MlflowException, OSError) as error:  # OSError: files that were removed, and a store that is away
        raise RecalignError(
            f"{uri} is not in the registry, or its files are gone ({redacted(' '.join(str(error).split()))[:200]}); "
            "allowed: models:/NAME@ALIAS and models:/NAME/VERSION of a registered adapter"
        ) from None
    if not (package / SETTINGS).is_file():
        raise RecalignError(
            f"{uri} holds no package ({SETTINGS}), so 'recalign register' did not make it or its files are gone; "
            "'recalign promote VERSION --reason …' chooses another version"
        )
    return package


def gate_page(title: str, verdict: Verdict | NotJudged | Silent) -> str:
    """The verdict and every guard's record as a page of its own; of what was not judged, why."""
    from recalign.common import html as page

    head = f"<h1>{page.escape(title)}</h1>"
    if not isinstance(verdict, Verdict):
        return page.document(title, [head, page.paragraph(f"It is {verdict.reason}.")])
    decision = f"It {'is' if verdict.accepted else 'is not'} champion: {verdict.reason}."
    rows = [
        (guard.label, guard.outcome, guard.sentence.partition(": ")[2] if guard.value is not None else guard.why or "—")
        for guard in verdict.guards
    ]
    note = f"Against {verdict.bar}. A guard is broken only where its interval lies wholly beyond its bound."
    guards = page.section("Guards", page.table(["guard", "outcome", "figure"], rows, note))
    return page.document(title, [head, page.paragraph(decision), guards])


def _set_champions(client: MlflowClient, name: str, past: list[str]) -> None:
    """The alias first: a kill after it looks like a promotion in MLflow's UI, which `champions` takes in."""
    client.set_registered_model_alias(name, CHAMPION, past[-1])
    client.set_registered_model_tag(name, CHAMPIONS, json.dumps(past))
    if len(past) > 1:
        client.set_registered_model_alias(name, PREVIOUS, past[-2])
    elif aliased(client, name, PREVIOUS):
        client.delete_registered_model_alias(name, PREVIOUS)


def _retire(client: MlflowClient, name: str, past: list[str], why: str) -> None:
    """Say with the last champion why it is no more; why it had become one is kept beside it, as the past."""
    if not past:
        return
    before = client.get_model_version(name, past[-1]).tags.get(REASON)
    if before is not None:
        client.set_model_version_tag(name, past[-1], WAS, before)
    client.set_model_version_tag(name, past[-1], REASON, why)


def _existing(client: MlflowClient, name: str, version: str) -> str:
    try:
        found: ModelVersion = client.get_model_version(name, version)
    except (MlflowException, ValueError):
        versions = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
        allowed = ", ".join(map(str, versions)) or "none: run 'recalign register' first"
        raise RecalignError(f"version {version!r} of {name} is not registered; registered are {allowed}") from None
    return str(found.version)


def _stated(reason: str) -> str:
    if not reason.strip():
        raise RecalignError("--reason is empty; say in a few words why, for those who look later")
    return reason.strip()
