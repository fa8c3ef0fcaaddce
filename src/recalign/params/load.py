"""params.yaml as a frozen pydantic tree; every stage reads it through `load_params`.

A null that the budget sets is filled in here, so the rest of the code never meets one.
"""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from recalign.common.errors import RecalignError, did_you_mean
from recalign.params.align import AlignParams
from recalign.params.base import BaseParams
from recalign.params.budgets import FROM_BUDGET, Budget, BudgetValues
from recalign.params.dpo4rec import Dpo4recParams
from recalign.params.evaluate import EvaluateParams
from recalign.params.fairness import FairnessParams
from recalign.params.hybrid import HybridParams
from recalign.params.lora import LoraParams
from recalign.params.pairs import PairsParams
from recalign.params.prepare import PrepareParams
from recalign.params.profiles import ProfilesParams
from recalign.params.prompt import PromptParams
from recalign.params.recommenders import RecommendersParams
from recalign.params.registry import RegistryParams
from recalign.params.schedule import ScheduleParams
from recalign.params.section import Section
from recalign.params.sft import SftParams
from recalign.params.simulator import SimulatorParams
from recalign.params.table import TableParams
from recalign.params.validate import ValidateParams
from recalign.project import PARAMS, shipped

Source = Literal["simulated", "movielens-100k", "movielens-1m", "lastfm", "table"]
LATER = ("hybrid", "fairness", "dpo4rec")  # sections that older params.yaml files lack: there, what is shipped holds


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
    hybrid: HybridParams
    align: AlignParams
    evaluate: EvaluateParams
    fairness: FairnessParams
    dpo4rec: Dpo4recParams
    registry: RegistryParams
    schedule: ScheduleParams


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Raises RecalignError: one line that names the key, its value, what is allowed, and the nearest valid key for a typo.
    """
    return parse_params(_read(path), str(path))


def _read(path: Path) -> Any:
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; run recalign in the project's root, where params.yaml lies") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecalignError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None


def params_or_shipped() -> Params:
    """params.yaml of the working directory or, outside of a project, the one that recalign is shipped with."""
    return load_params(PARAMS if PARAMS.is_file() else shipped(PARAMS))


def parse_params(tree: Any, origin: str = "params") -> Params:
    """Check a tree of plain values as `load_params` does; `origin` names it in errors."""
    if not isinstance(tree, dict):
        raise RecalignError(f"{origin} holds {type(tree).__name__}, not a mapping of sections")
    try:
        return Params.model_validate(_with_budget(_with_later(tree)))
    except ValidationError as error:
        raise RecalignError(f"{origin}: {_describe(error, tree)}") from None


def _with_later(tree: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in LATER if name not in tree]
    if not missing:
        return tree
    own = _read(shipped(PARAMS))
    return tree | {name: own[name] for name in missing}


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
    errors = error.errors()
    # a renamed key is both missing and unknown: the name that stands there tells what to change
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parents, name = first["loc"][:-1], str(first["loc"][-1])
        elsewhere = [path for path in _keys(Params) if path.rpartition(".")[2] == name]  # right, in the wrong section
        absent = [str(each["loc"][-1]) for each in errors if each["type"] == "missing" and each["loc"][:-1] == parents]
        likely = difflib.get_close_matches(name, absent, n=1)
        near = elsewhere or likely or difflib.get_close_matches(name, _siblings(parents), n=1, cutoff=0.0)
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
