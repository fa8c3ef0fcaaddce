"""params.yaml as a frozen pydantic tree; every stage reads it through `load_params`.

A null that the budget sets is filled in here, so the rest of the code never meets one.
"""

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from recalign.common.cron import check_zone, parse_cron
from recalign.common.errors import RecalignError, did_you_mean
from recalign.project import PARAMS

Source = Literal["simulated", "movielens-100k", "movielens-1m", "lastfm", "table"]
Budget = Literal["smoke", "demo", "few-shot", "full"]
Preset = Literal["dpo", "dpo_pairs", "sdpo", "dmpo", "simpo", "alpha_dpo", "beta_dpo", "dr_dpo"]
RecommenderName = Literal[
    "popularity", "recent_popularity", "item_knn", "ease", "markov", "sasrec", "gru4rec", "caser", "mcrl", "dreamrec"
]
Strategy = Literal["uniform", "popularity", "hard", "profile", "disliked"]
Metric = Literal["hr_at_1", "hr_at_5", "ndcg_at_10", "mrr"]
Share = Field(ge=0.0, le=1.0)


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BudgetValues(Section):
    base_model: str
    sft_examples: int = Field(gt=0)
    sft_epochs: int = Field(gt=0)
    pairs: int = Field(gt=0)
    align_epochs: int = Field(gt=0)
    negatives: int = Field(gt=0)
    profile_users: int = Field(gt=0)
    validation_cases: int = Field(gt=0)
    test_cases: int = Field(gt=0)
    cold_cases: int = Field(ge=0)


class SimulatorParams(Section):
    users: int = Field(gt=0)
    days: int = Field(gt=0)
    seed: int = Field(ge=0)


class TableParams(Section):
    interactions: str
    items: str | None
    user: str
    item: str
    title: str
    timestamp: str | None
    rating: str | None
    min_rating: float | None = None  # params.yaml files from before it have no such key
    attributes: tuple[str, ...]
    available_from: str | None = None
    noun: str
    columns: tuple[str, ...] | None = None
    items_columns: tuple[str, ...] | None = None


class ValidateParams(Section):
    max_rejected: float = Share
    min_rows: int = Field(ge=1)
    max_rows_per_user: float = Field(gt=0.0, le=1.0)
    chunk_rows: int = Field(ge=1000)


class PrepareParams(Section):
    min_rating: float | None
    core: int = Field(ge=1)
    split: Literal["time", "leave-one-out"]
    validation_share: float = Field(gt=0.0, lt=0.5)
    test_share: float = Field(gt=0.0, lt=0.5)
    profile_share: float = Field(ge=0.0, lt=1.0)
    cold_events: int = Field(ge=1)
    hidden_items: float = Field(ge=0.0, lt=1.0)
    min_history: int = Field(ge=1)
    max_history: int = Field(ge=1)
    candidates: int = Field(ge=2)
    cases_per_user: int = Field(ge=1)
    train_examples_per_user: int = Field(ge=1)
    memory_limit: str = Field(pattern=r"^\d+(\.\d+)?\s?(MB|GB|MiB|GiB)$")
    popularity_alpha: float = Field(ge=0.0)


class NextItemParams(Section):
    loss: Literal["binary", "sampled", "full"]
    negatives: int = Field(ge=1)
    dimension: int = Field(ge=1)
    dropout: float = Field(ge=0.0, lt=1.0)
    max_history: int = Field(ge=1)
    window: int = Field(ge=1)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0.0)
    epochs: int = Field(ge=1)
    patience: int = Field(ge=1)


class McrlParams(Section):
    backbone: Literal["sasrec", "gru4rec", "caser"]
    temporal_difference: float = Field(ge=0.0)
    conservative: float = Field(ge=0.0)
    reward: float = Field(ge=0.0)
    transition: float = Field(ge=0.0)
    discount: float = Field(ge=0.0, lt=1.0)
    negatives: int = Field(ge=1)
    temperature: float = Field(gt=0.0)


class DreamRecParams(Section):
    embeddings: Literal["pretrained", "joint"]
    schedule: Literal["linear", "cosine", "exponential", "square-root"]
    steps: int = Field(ge=1)
    dropped: float = Share
    guidance: float = Field(ge=0.0)
    sampler: Literal["ddim", "posterior"]
    sampler_steps: int = Field(ge=1)

    @field_validator("sampler_steps")
    @classmethod
    def _no_more_than_there_are(cls, sampler_steps: int, info: ValidationInfo) -> int:
        steps = info.data.get("steps", sampler_steps)
        if sampler_steps > steps:
            raise ValueError(f"the chain has {steps} steps (recommenders.dreamrec.steps), and no more can be visited")
        return sampler_steps


class RecommendersParams(Section):
    systems: tuple[RecommenderName, ...]
    next_item: NextItemParams
    mcrl: McrlParams
    dreamrec: DreamRecParams

    @field_validator("systems")
    @classmethod
    def _holds_what_others_read(cls, systems: tuple[str, ...]) -> tuple[str, ...]:
        for needed, reader in (("popularity", "the registry's gate"), ("item_knn", "hard negatives")):
            if needed not in systems:
                raise ValueError(f"{needed} is missing, which {reader} read; add it")
        if len(set(systems)) != len(systems):
            raise ValueError("a system stands twice; name each once")
        return systems


class BaseParams(Section):
    model: str
    revision: str | None
    quantisation: Literal["none", "nf4", "int8"]
    compute: Literal["auto", "fp32", "bf16"]


class PromptParams(Section):
    form: Literal["history", "candidates"]
    history: int = Field(ge=1)
    training_history: int = Field(ge=1)
    profile: bool
    max_title_tokens: int = Field(ge=1)


class ProfilesParams(Section):
    engine: Literal["statements", "generate", "endpoint", "counting"]
    users: int = Field(gt=0)
    claims: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    url: str
    endpoint_model: str | None
    batch: int = Field(ge=1)


class PairsParams(Section):
    examples: int = Field(gt=0)
    negatives: int = Field(gt=0)
    strategy: Literal["uniform", "popularity", "hard", "profile", "disliked", "mixed"]
    popularity_alpha: float = Field(ge=0.0)
    hard_pool: int = Field(ge=1)
    shares: dict[Strategy, float]


class LoraParams(Section):
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0.0)
    dropout: float = Field(ge=0.0, lt=1.0)
    targets: str | tuple[str, ...]
    layers: int | None = Field(default=None, ge=1)


class OptimiserParams(Section):
    learning_rate: float = Field(gt=0.0)
    batch: int = Field(ge=1)
    micro_tokens: int = Field(ge=1)
    warmup: float = Share
    weight_decay: float = Field(ge=0.0)
    max_grad_norm: float = Field(gt=0.0)
    evaluations: int = Field(ge=1)


class SftParams(OptimiserParams):
    examples: int = Field(gt=0)
    epochs: int = Field(gt=0)


class ObjectiveSettings(Section):
    """What an objective has of its own; null: as align.beta, align.rho or its preset say."""

    like: Preset | None = None
    reward: Literal["log_ratio", "sum", "mean"] | None = None
    loss: Literal["logistic", "hinge", "ipo"] | None = None
    negatives: Literal["first", "pairs", "mean", "logsumexp"] | None = None
    beta: float | None = Field(default=None, gt=0.0)
    rho: float | None = None
    label_smoothing: float | None = Field(default=None, ge=0.0, lt=0.5)
    alpha: float | None = None
    beta_scale: float | None = None
    drop: float | None = Field(default=None, ge=0.0, lt=1.0)
    momentum: float | None = Field(default=None, ge=0.0, lt=1.0)
    beta_prime: float | None = Field(default=None, gt=0.0)
    convention: Literal["code", "paper"] | None = None


ObjectiveName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]  # a folder's name too
FolderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class AlignParams(OptimiserParams):
    settings: dict[ObjectiveName, ObjectiveSettings]
    objectives: tuple[str, ...] = Field(min_length=1)
    epochs: int = Field(gt=0)
    beta: float = Field(gt=0.0)
    rho: float

    @field_validator("settings")
    @classmethod
    def _like_a_preset(cls, settings: dict[str, ObjectiveSettings]) -> dict[str, ObjectiveSettings]:
        for name, own in settings.items():
            if name in ("base", "sft", "fusion"):
                raise PydanticCustomError("like", f"'{name}' names another system; call the objective otherwise")
            if own.like is None and name not in get_args(Preset):
                raise PydanticCustomError("like", f"'{name}' needs 'like: ' and one of {', '.join(get_args(Preset))}")
        return settings

    @field_validator("objectives")
    @classmethod
    def _have_settings(cls, objectives: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in objectives:
            _known_objective(name, info.data.get("settings", {name: None}))
        if len(set(objectives)) < len(objectives):
            raise PydanticCustomError("twice", "an objective may stand there once")
        return objectives

    def of(self, objective: str) -> dict[str, Any]:
        """The settings of one objective, align.beta and align.rho filled in; what stays null is left out.

        Raises RecalignError for an objective that align.settings does not have.
        """
        try:
            _known_objective(objective, self.settings)
        except PydanticCustomError as error:
            raise RecalignError(f"objective is '{objective}'; {error.message()}") from None
        shared = {"beta": self.beta, "rho": self.rho}
        return shared | self.settings[objective].model_dump(exclude_none=True)


def _known_objective(name: str, settings: Mapping[str, object]) -> None:
    if name not in settings:
        hint, allowed = did_you_mean(name, settings), ", ".join(settings)
        raise PydanticCustomError("objective", f"'{name}' is not in align.settings; allowed are {allowed}{hint}")


class EvaluateParams(Section):
    validation_cases: int = Field(gt=0)
    test_cases: int = Field(gt=0)
    cold_cases: int = Field(ge=0)
    score: Literal["auto", "logprob", "logprob_less_prior", "reward"]
    prior_weights: tuple[float, ...]
    resamples: int = Field(ge=100)
    batch: int = Field(ge=1)
    full_catalogue_cases: int = Field(ge=0)
    full_catalogue_depth: int | None = Field(ge=10)
    generation_cases: int = Field(ge=0)
    beams: int = Field(ge=1)
    popularity_manifest: bool
    adapters: tuple[FolderName, ...]
    fusion: bool

    @field_validator("adapters")
    @classmethod
    def _once(cls, adapters: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(adapters)) < len(adapters):
            raise ValueError("an adapter stands twice; name each once")
        return adapters


class RegistryParams(Section):
    model: str
    system: Literal["adapter", "fusion"]
    metric: Metric
    error: float = Field(gt=0.0, lt=0.5)
    min_users: int = Field(ge=10)
    margin: float = Field(ge=0.0)

    @field_validator("model")
    @classmethod
    def _plain_name(cls, model: str) -> str:
        """MLflow refuses "/" and ":" only after training, its filters end at a quote, and the name is a folder's."""
        if not re.fullmatch(r"\w[\w .-]*", model) or ".." in model or model.endswith((".", " ")):
            raise ValueError("use letters, digits, spaces, '-', '_' and single dots, the first a letter or digit")
        return model


class ScheduleParams(Section):
    cron: str
    timezone: str
    retries: int = Field(ge=0)
    timeout_minutes: float = Field(gt=0.0)
    wait_minutes: float = Field(ge=0.0)

    @field_validator("cron")
    @classmethod
    def _one_meaning(cls, cron: str) -> str:
        parse_cron(cron)
        return cron

    @field_validator("timezone")
    @classmethod
    def _exists(cls, timezone: str) -> str:
        check_zone(timezone)
        return timezone


class Params(Section):
    """The whole of params.yaml, budget applied."""

    source: Source
    budget: Budget
    seed: int = Field(ge=0)
    threads: int = Field(ge=1)
    checkpoint_seconds: float = Field(default=60.0, ge=0.0, le=86400.0)  # a day; older params.yaml files lack the key
    budgets: dict[Budget, BudgetValues]
    simulator: SimulatorParams
    table: TableParams
    validate_: ValidateParams = Field(alias="validate")
    prepare: PrepareParams
    recommenders: RecommendersParams
    base: BaseParams
    prompt: PromptParams
    profiles: ProfilesParams
    pairs: PairsParams
    lora: LoraParams
    sft: SftParams
    align: AlignParams
    evaluate: EvaluateParams
    registry: RegistryParams
    schedule: ScheduleParams


# section, key, and the budget's value that fills a null there
FROM_BUDGET = (
    ("base", "model", "base_model"),
    ("profiles", "users", "profile_users"),
    ("pairs", "examples", "pairs"),
    ("pairs", "negatives", "negatives"),
    ("sft", "examples", "sft_examples"),
    ("sft", "epochs", "sft_epochs"),
    ("align", "epochs", "align_epochs"),
    ("evaluate", "validation_cases", "validation_cases"),
    ("evaluate", "test_cases", "test_cases"),
    ("evaluate", "cold_cases", "cold_cases"),
)


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Raises RecalignError: one line that names the key, its value, what is allowed, and the nearest valid key for a typo.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; run recalign in the project's root, where params.yaml lies") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecalignError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    return parse_params(tree, str(path))


def params_or_shipped() -> Params:
    """params.yaml of the working directory or, outside of a project, the one that recalign is shipped with."""
    shipped = (Path(__file__).parents[2] / PARAMS, Path(sys.prefix) / "share" / "recalign" / PARAMS)
    return load_params(next((path for path in (PARAMS, *shipped) if path.is_file()), PARAMS))


def parse_params(tree: Any, origin: str = "params") -> Params:
    """Check a tree of plain values as `load_params` does; `origin` names it in errors."""
    if not isinstance(tree, dict):
        raise RecalignError(f"{origin} holds {type(tree).__name__}, not a mapping of sections")
    try:
        return Params.model_validate(_with_budget(tree))
    except ValidationError as error:
        raise RecalignError(f"{origin}: {_describe(error, tree)}") from None


def _with_budget(tree: dict[str, Any]) -> dict[str, Any]:
    values = (tree.get("budgets") or {}).get(tree.get("budget"))
    if not isinstance(values, dict):
        return tree  # pydantic then names what is wrong with the budget
    filled = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for section, key, budget_key in FROM_BUDGET:
        part = filled.get(section)
        if isinstance(part, dict) and part.get(key, 0) is None:
            part[key] = values.get(budget_key)
    return filled


def _describe(error: ValidationError, tree: dict[str, Any]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parents, name = first["loc"][:-1], str(first["loc"][-1])
        elsewhere = [path for path in _keys(Params) if path.rpartition(".")[2] == name]  # right, in the wrong section
        near = elsewhere or difflib.get_close_matches(name, _siblings(parents), n=1, cutoff=0.0)
        nearest = near[0] if elsewhere else ".".join([*map(str, parents), near[0]])
        return f"unknown key '{key}'; the nearest valid key is '{nearest}'"
    if first["type"] == "missing":
        return f"key '{key}' is missing; add it as the params.yaml of the repository shows it"
    if first["type"] == "like":
        return f"{key}: {first['msg']}"
    said = first["msg"].removeprefix("Value error, ")
    return f"{key} is {first['input']!r}; {said[0].lower()}{said[1:]}{_nearest_value(first)}"


def _nearest_value(error: ErrorDetails) -> str:
    """A hint to the nearest of the values that a key allows, where it allows but a few."""
    if error["type"] != "literal_error":
        return ""
    return did_you_mean(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))


def _keys(model: type[BaseModel], above: str = "") -> list[str]:
    """Every key below a section, dotted; what users name themselves (objectives, budgets) is left out."""
    found = []
    for name, field in model.model_fields.items():
        path = f"{above}{field.alias or name}"
        own = field.annotation
        found += _keys(own, f"{path}.") if isinstance(own, type) and issubclass(own, BaseModel) else [path]
    return found


def _siblings(parents: tuple[int | str, ...]) -> list[str]:
    model: Any = Params
    for part in parents:
        if isinstance(model, type) and issubclass(model, BaseModel):
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            model = fields[str(part)].annotation
        elif get_origin(model) is dict:
            model = get_args(model)[1]  # a mapping of sections
    return [field.alias or name for name, field in model.model_fields.items()]
