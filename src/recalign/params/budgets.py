"""`budgets`: the counts that one choice, `budget`, sets, and the keys whose null they fill."""

from typing import Literal

from pydantic import Field

from recalign.params.section import Section

Budget = Literal["smoke", "demo", "few-shot", "hour", "full"]


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
