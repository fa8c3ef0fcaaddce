"""`recommenders`: which ID recommenders are fitted, and how the neural ones learn."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from recalign.params.section import Section, Share

RecommenderName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]  # recommenders/roster.py has them


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
