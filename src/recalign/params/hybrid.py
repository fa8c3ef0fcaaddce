"""`hybrid`: language models whose prompts show a recommender's item vectors."""

from typing import Literal

from recalign.params.section import Section

TeacherName = Literal["sasrec", "gru4rec", "caser", "ease", "content"]


class HybridParams(Section):
    teachers: tuple[TeacherName, ...]
    curriculum: Literal["linear", "none"]
    vectors: Literal["static", "states"] = "static"  # older params.yaml files lack the key
