"""What is registered of a system: adapter, rule, catalogue and the identity of its base; never the base's weights.

A package is a folder: settings.json, items.parquet, item_ids.parquet (their ids in the person's own log), adapter/,
reference/ where the rule is the implicit reward, and recommenders/<name>/ for each ID recommender of a fusion.
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from recalign.common.artifacts import MANIFEST, digest_of, folder, read_json, verify_once, write_json
from recalign.common.errors import RecalignError, did_you_mean
from recalign.data.ids import RawIds
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.evaluation.ranking_rule import Kind, RankingRule
from recalign.evaluation.ranks import FULL
from recalign.evaluation.systems import (
    FUSION,
    LLM,
    RANDOM_BASE,
    SYSTEMS,
    TRANSFERRED,
    TUNED,
    System,
    adapter_of,
    llara_name,
    read_systems,
    system_of,
)
from recalign.llm.model.adapters import CONFIG, adapter_digest, check_adapter, find_adapter
from recalign.llm.model.files import IDENTITY
from recalign.params.base import BaseParams
from recalign.params.load import Params
from recalign.params.profiles import ProfilesParams
from recalign.params.prompt import PromptParams
from recalign.project import ALIGN, BASE, BASELINES, HYBRID, INTERACTIONS, OTHER, PREPARED, RANKS, SFT
from recalign.ranking.fusion import FITTED, FittedFusion, read_fusion
from recalign.ranking.language_model import Setting
from recalign.ranking.measured import (
    ADAPTER,
    BASE_WEIGHTS,
    RECOMMENDER,
    REFERENCE,
    check_made_by,
    language_model_artifacts,
    recommender_artifacts,
    told_artifacts,
)

SETTINGS, RECOMMENDERS = "settings.json", "recommenders"  # beside folders named ADAPTER and REFERENCE


class Identity(BaseModel):
    """The base that an adapter belongs to, as base.json states it."""

    model_config = ConfigDict(frozen=True)

    id: str
    revision: str
    sha256: str


class Settings(BaseModel):
    """All that fixes a system's answers beside its weights and catalogue.

    profile_engine: what inferred the profiles that prompts showed while it was measured; profiles: that engine's
    settings, None where prompts show no profile (and in a version of before there was such a field); fusion: its parts
    and their weights, None for a language model that ranks alone. ranked_by and prior_weight are the language model's;
    catalogue_ranked_by: what ranks the whole catalogue, None (a version of before there was such a field): the same.
    seed, threads: of the run that measured it; a version of before there were such fields has None for the latter.
    artifacts: digests of what made its language model's ranks, by role; None in a version of before there were such.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    source: str
    noun: str
    clock: bool
    ranked_by: Kind
    prior_weight: float
    catalogue_ranked_by: Kind | None = None
    prompt: PromptParams
    base: BaseParams
    identity: Identity
    profile_engine: str
    profiles: ProfilesParams | None = None
    fusion: FittedFusion | None = None
    seed: int = 0
    threads: int | None = None
    artifacts: dict[str, str] | None = None

    @property
    def setting(self) -> Setting:
        """What opens its language model."""
        return Setting(
            self.base, self.prompt, self.noun, self.clock, self.seed, self.threads, self.rule, self.catalogue_rule
        )

    @property
    def rule(self) -> RankingRule:
        """What ranks the language model's lists."""
        return RankingRule(self.ranked_by, self.prior_weight)

    @property
    def catalogue_rule(self) -> RankingRule:
        """What ranks the whole catalogue by the language model."""
        return RankingRule(self.catalogue_ranked_by or self.ranked_by, self.prior_weight)

    @property
    def language_model(self) -> str:
        """The system whose adapter it is."""
        return self.fusion.language_model if self.fusion else self.system

    @property
    def random_model(self) -> bool:
        """Whether a language model on a random base has a say in the answers, which then mean nothing."""
        active = self.fusion is None or self.fusion.active_language_model is not None
        return active and self.identity.id == RANDOM_BASE

    @property
    def sentence(self) -> str:
        """What ranks lists, in words."""
        return self._said(self.rule)

    @property
    def catalogue_sentence(self) -> str:
        """What ranks the whole catalogue, in words."""
        return self._said(self.catalogue_rule)

    def _said(self, rule: RankingRule) -> str:
        return f"{self.fusion.fusion.sentence}; {rule.sentence}" if self.fusion else rule.sentence


def best_objective(params: Params, systems: Mapping[str, System]) -> str:
    """The objective, or "llara-<teacher>", whose adapter has the highest registry.metric on the validation cases;
    `systems` by name.

    Raises RecalignError when an objective of params was not evaluated.
    """
    trained = [*params.align.objectives, *map(llara_name, params.hybrid.teachers)]
    for objective in trained:
        _evaluated(systems, objective)
    metric = params.registry.metric
    return max(trained, key=lambda objective: systems[system_of(objective)].validation[metric])


def settings_of(params: Params, objective: str, root: Path, folder: Path | None = None) -> Settings:
    """The settings of an objective's system, or of the fusion, as it was evaluated in the project at `root`.

    folder: where its adapter lies, None for the project's own. Raises RecalignError where it was not evaluated, or
    where what lies there now is not what made its ranks: adapter, reference, base, or a part of the fusion.
    """
    fusion = evaluated_fusion(root) if objective == FUSION else None
    if fusion:
        _check_part(fusion, fusion.language_model, adapter_digest(adapter_folder(fusion.language_model, root)))
    adapter = adapter_of(fusion.language_model) if fusion else objective
    about = _evaluated(read_systems(root / RANKS / SYSTEMS), adapter)
    told = _check_unchanged(system_of(adapter), about, folder or adapter_folder(system_of(adapter), root), root)
    data = Prepared(root / PREPARED)
    return Settings(
        system=FUSION if fusion else system_of(objective),
        source=data.source,
        noun=data.noun,
        clock=data.clock,
        ranked_by=about.rule().kind,
        prior_weight=about.rule().prior_weight,
        catalogue_ranked_by=about.rule(FULL).kind,
        prompt=params.prompt,
        base=params.base,
        identity=Identity(**read_json(root / BASE / "base.json")),
        profile_engine=params.profiles.engine,
        profiles=params.profiles if params.prompt.profile else None,
        fusion=fusion,
        seed=params.seed,
        threads=params.threads,
        artifacts=told,
    )


def adapter_folder(system: str, root: Path) -> Path:
    """Where the project at `root` keeps the adapter of a language model's system: its own, or one that was brought."""
    if system == TUNED:
        return root / SFT
    hybrid = root / HYBRID / adapter_of(system)
    if hybrid.is_dir():
        return hybrid
    own, brought = root / ALIGN / adapter_of(system), find_adapter(root / OTHER / adapter_of(system))
    return brought if brought is not None and not own.is_dir() else own


def package_digest(settings: Settings, root: Path) -> str:
    """One value for a system and all that fixes its answers: equal digests, one version.

    Raises RecalignError where an adapter is damaged or of another base than the project's.
    """
    identity = settings.identity.model_dump()
    check_adapter(adapter_folder(settings.language_model, root), identity)
    if settings.ranked_by == "reward":
        check_adapter(root / SFT, identity)
    reference = adapter_digest(root / SFT) if settings.ranked_by == "reward" else None
    # adapters keep the digests they had, and another number of threads makes no other version
    without = {name for name in ("fusion", "profiles") if getattr(settings, name) is None}
    said = settings.model_dump(exclude=without | {"seed", "threads", "artifacts"})
    return digest_of([adapter_digest(adapter_folder(settings.language_model, root)), reference, said])


def write_package(settings: Settings, root: Path, out: Path) -> None:
    """Write the package of a system of the project at `root` into `out`."""
    with folder(out) as partial:
        shutil.copytree(adapter_folder(settings.language_model, root), partial / ADAPTER)
        if settings.ranked_by == "reward":
            shutil.copytree(root / SFT, partial / REFERENCE)
        for name in settings.fusion.recommenders if settings.fusion else ():
            shutil.copytree(root / BASELINES / name, partial / RECOMMENDERS / name)
        shutil.copyfile(root / PREPARED / "items.parquet", partial / "items.parquet")
        RawIds.of_items(root / INTERACTIONS).within(set(Items.read(partial).ids)).write(partial)
        write_json(partial / SETTINGS, settings.model_dump())


def read_settings(package: Path) -> Settings:
    """The settings of a package."""
    return Settings.model_validate(read_json(package / SETTINGS))


def _evaluated(systems: Mapping[str, System], objective: str) -> System:
    system = system_of(objective)
    about = systems.get(system)
    if about is None:
        hint = did_you_mean(objective, [FUSION, *(adapter_of(name) for name in systems if systems[name].kind == LLM)])
        raise RecalignError(
            f"{RANKS / SYSTEMS} holds no {system}{hint}; run 'dvc repro' with {objective!r} in align.objectives or, of "
            "an adapter from elsewhere, in evaluate.adapters"
        )
    return about


def _check_unchanged(system: str, about: System, folder: Path, root: Path) -> dict[str, str]:
    """The digests of what made a language model's ranks, which must be those of what is there now."""
    told = told_artifacts(system, about)
    reference = root / SFT if about.ranked_by == "reward" else None
    check_made_by(system, told, language_model_artifacts(root / BASE, folder, reference), str(folder))
    return dict(told)


def check_ranks(root: Path, systems: Collection[str] | None = None) -> None:
    """Refuse ranks of the project at `root` (of some systems, or all) that were made by others than lie there now.

    What is gone, and what an earlier version evaluated, passes. Raises RecalignError naming both digests.
    """
    for name, about in read_systems(root / RANKS / SYSTEMS).items():
        if systems is None or name in systems:
            places = _brought(name, root) if about.kind == TRANSFERRED else _present(name, root)
            for place, now in places.items():
                check_made_by(name, about.artifacts or {}, now, str(place))


def _present(system: str, root: Path) -> dict[Path, dict[str, str]]:
    """Digests by role of what lies in the places of a system's artifacts."""
    own, base, recommender = adapter_folder(system, root), root / BASE, root / BASELINES / system
    adapters = {own: ADAPTER, root / SFT: REFERENCE if own != root / SFT else ADAPTER}
    found = {place: {role: adapter_digest(place)} for place, role in adapters.items() if (place / CONFIG).is_file()}
    if (recommender / MANIFEST).is_file():
        found[recommender] = recommender_artifacts(recommender)
    if (base / IDENTITY).is_file():
        found[base] = language_model_artifacts(base, None)
    return found


def _brought(system: str, root: Path) -> dict[Path, dict[str, str]]:
    """As `_present`, of a system whose adapter another run trained."""
    place, base = root / OTHER / adapter_of(system), root / BASE
    folder = find_adapter(place)
    found = {place: {ADAPTER: adapter_digest(folder)}} if folder else {}
    return found | ({base: language_model_artifacts(base, None)} if (base / IDENTITY).is_file() else {})


def check_package(package: Path, base: Path) -> None:
    """Refuse a package, or a base under it, that is not what the ranks it was judged by were made with.

    Raises RecalignError naming the file that was changed, or both digests.
    """
    verify_once(package)
    settings = read_settings(package)
    fusion, parts = settings.fusion, _parts(package, settings)
    told: dict[str, dict[str, str]] = {settings.language_model: settings.artifacts or {}}
    if fusion:
        told |= {str(name): {RECOMMENDER: fusion.parts[name].digest} for name in fusion.recommenders}
    parts[settings.language_model] |= language_model_artifacts(base, None)
    for system, now in parts.items():
        check_made_by(system, told[system], now, str(package))


def check_kept(package: Path, systems: Mapping[str, System]) -> None:
    """Refuse a registered package that is not what made the ranks kept beside it.

    systems: those of the evaluation that it was registered after. What that does not tell (an earlier
    version wrote it) passes. Raises RecalignError naming the file that was changed, or both digests.
    """
    verify_once(package)
    for name, now in _parts(package, read_settings(package)).items():
        told = systems[name].artifacts if name in systems else None
        check_made_by(name, told or {}, now, str(package))


def _parts(package: Path, settings: Settings) -> dict[str, dict[str, str]]:
    """By system the digests by role of what lies in a package, and of the base that it belongs to."""
    roles = (ADAPTER, REFERENCE) if settings.ranked_by == "reward" else (ADAPTER,)
    own = {role: adapter_digest(package / role) for role in roles}  # the folders have the roles' names
    found = {settings.language_model: {BASE_WEIGHTS: settings.identity.sha256} | own}
    for name in settings.fusion.recommenders if settings.fusion else ():
        found[name] = recommender_artifacts(package / RECOMMENDERS / name)
    return found


def evaluated_fusion(root: Path) -> FittedFusion:
    """The fusion as stage fuse fitted it, its ID recommenders still the same.

    Raises RecalignError where it is missing, or naming the part that was fitted again.
    """
    if not (root / RANKS / FITTED).is_file():
        raise RecalignError(f"{RANKS / FITTED} is missing; set evaluate.fusion to true and run 'dvc repro'")
    fitted = read_fusion(root / RANKS)
    for name in fitted.recommenders:
        _check_part(fitted, name, recommender_artifacts(root / BASELINES / name)[RECOMMENDER])
    return fitted


def _check_part(fitted: FittedFusion, name: str, digest: str) -> None:
    check_made_by(FUSION, {name: fitted.parts[name].digest}, {name: digest}, "the project")
