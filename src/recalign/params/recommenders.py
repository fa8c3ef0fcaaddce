"""`recommenders`: which ID recommenders are fitted, and how the neural ones learn."""

from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from recalign.common.errors import did_you_mean
from recalign.params.section import Section, Share

RecommenderName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]  # recommenders/roster.py has them

ItemEncoder = Literal["attributes", "tfidf", "minilm", "base", "model"]


def check_encoder(encoder: str) -> str:
    """The name of blocks joined by "+". Raises ValueError for one that is unknown, or named twice."""
    allowed, blocks = get_args(ItemEncoder), encoder.split("+")
    for block in blocks:
        if block not in allowed:
            hint = did_you_mean(block, allowed)
            raise ValueError(f"'{block}' in '{encoder}' is none of {', '.join(allowed)}{hint}")
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"'{encoder}' names a block twice; name each once")
    return encoder


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
    text: Literal["none", "split", "delta"] = "none"  # older params.yaml files lack these four
    text_encoder: str = "attributes+tfidf"
    text_share: float = Field(default=0.5, gt=0.0, lt=1.0)
    text_bound: float = Field(default=0.5, gt=0.0)

    @field_validator("text_encoder")
    @classmethod
    def _known_blocks(cls, encoder: str) -> str:
        return check_encoder(encoder)


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


class ContentParams(Section):
    encoders: tuple[str, ...] = Field(min_length=1)
    dimensions: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    ridges: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(min_length=1)
    model: str | None
    revision: str | None

    @field_validator("encoders")
    @classmethod
    def _known_blocks(cls, encoders: tuple[str, ...]) -> tuple[str, ...]:
        for encoder in encoders:
            check_encoder(encoder)
        return encoders


class RecommendersParams(Section):
    systems: tuple[RecommenderName, ...]
    content: ContentParams
    next_item: NextItemParams
    mcrl: McrlParams
    dreamrec: DreamRecParams

    @field_validator("systems")
    @classmethod
    def _holds_what_others_read(cls, systems: tuple[str, ...]) -> tuple[str, ...]:
        for needed, reader in (("popularity", "the registry's gate"), ("item_knn", "hard negatives")):
            if needed not in systems:
                raise ValueError(f"{needed} is missing, which {reader} read; add it")
        if "content" in systems and "content_prior" not in systems:
            raise ValueError("content is listed without content_prior, which shows what of it is personal; add it")
        if len(set(systems)) != len(systems):
            raise ValueError("a system is listed twice; name each once")
        return systems
