"""params.yaml of this project as a frozen tree; an error names the key, its value and what is allowed."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from recalign.common.errors import RecalignError
from recalign.params.align import ObjectiveSettings
from recalign.params.base import BaseParams
from recalign.params.lora import LoraParams
from recalign.params.section import OptimiserParams, Section

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PARAMS = Path("params.yaml")
Kind = Literal["types", "yes-no", "number"]


class DataParams(Section):
    """`data`: the files, their columns, and what a row may be."""

    pairs: str
    molecules: str | None
    molecule_id: str
    molecule_smiles: str
    types: str | None
    first: str
    second: str
    label: str
    split: str | None
    across: str | None = None  # with a default: packages that were registered before it have none
    across_label: str | None = None
    best: str | None
    kind: Kind
    allow_self: bool
    max_atoms: int = Field(ge=1)
    max_rejected: float = Field(ge=0.0, le=1.0)


class SplitParams(Section):
    """`split`: shares that are held out, drawn from a hash of the molecule or the pair."""

    molecules: float = Field(gt=0.0, lt=1.0)
    pairs: float = Field(gt=0.0, lt=1.0)
    validation: float = Field(gt=0.0, lt=1.0)


class SubsetParams(Section):
    """`subset`: how many pairs the language model reads, the same ones as the baselines that are compared with it."""

    train: int = Field(ge=1)
    validation: int = Field(ge=1)
    test: int = Field(ge=1)
    describe: int = Field(ge=1)


class GraphParams(Section):
    """`graph`: the graph network, and the queries that read it."""

    tokens: int = Field(ge=1)
    layers: int = Field(ge=1)
    width: int = Field(ge=4)
    query_layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    tuned: bool = True  # with a default, as data.across


class PromptParams(Section):
    """`prompt`: what is said of the molecules before the question."""

    first_name: str
    second_name: str
    question: str
    thought: bool
    number: Literal["text", "head"]
    max_smiles_tokens: int = Field(ge=1)


class StageParams(OptimiserParams):
    """`describe`, `interact`: an optimiser, and how often the examples are read."""

    epochs: int = Field(ge=1)


class PreferParams(StageParams):
    """`prefer`: an objective on the right sentence against K wrong ones."""

    objective: str
    negatives: int = Field(ge=1)
    settings: ObjectiveSettings


class EvaluateParams(Section):
    """`evaluate`: resamples of the intervals, and the most tokens of a generated number."""

    resamples: int = Field(ge=100)
    new_tokens: int = Field(ge=4)


class Params(Section):
    """The whole of params.yaml."""

    seed: int = Field(ge=0)
    threads: int = Field(ge=1)
    data: DataParams
    split: SplitParams
    subset: SubsetParams
    base: BaseParams
    graph: GraphParams
    prompt: PromptParams
    lora: LoraParams
    describe: StageParams
    interact: StageParams
    joint: str | None = None
    prefer: PreferParams
    evaluate: EvaluateParams


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml. Raises RecalignError, one line that names the key, its value and what is allowed."""
    from ruamel.yaml import YAML, YAMLError

    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecalignError(f"{path} is missing; run this in examples/molecules, where params.yaml is") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecalignError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    return parse_params(tree, str(path))


def parse_params(tree: object, origin: str = "params") -> Params:
    """Check a tree of plain values; `origin` names it in errors, which are those of `load_params`."""
    try:
        params = Params.model_validate(tree)
    except ValidationError as error:
        raise RecalignError(f"{origin}: {_told(error.errors()[0])}") from None
    if params.data.kind == "types" and params.data.types is None:
        raise RecalignError(f"{origin}: data.types is null but data.kind is types; name the file of type sentences")
    if params.graph.width % params.graph.heads:
        raise RecalignError(f"{origin}: graph.width {params.graph.width} is no multiple of graph.heads")
    return params


def _told(error: "ErrorDetails") -> str:
    """What is wrong with a key, in words; where it is missing, its value would be the whole section."""
    key, said = ".".join(map(str, error["loc"])) or "the file", error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"key {key} is missing; add it as examples/molecules/params.yaml has it"
    if error["type"] == "extra_forbidden":
        return f"{key} is no key; examples/molecules/params.yaml has them all"
    return f"{key} is {error['input']!r}; {said[:1].lower()}{said[1:]}"
