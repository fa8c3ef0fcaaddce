"""What a text in a title gains an item, in the report and below the table."""

from collections.abc import Mapping

from recalign.common import html as page
from recalign.evaluation.injection import IN_HISTORY, IN_LIST, Lift
from recalign.evaluation.systems import FUSION

Lifts = Mapping[str, Mapping[str, Lift]]  # by system, then position
WHERE = {IN_LIST: "its own", IN_HISTORY: "the last liked item's"}


def injection_section(lifts: Lifts) -> str:
    """A row a system and position; empty where nothing was measured (evaluate.injection_cases is 0)."""
    if not lifts:
        return ""
    rows = [
        (system, WHERE[position], lift.sentence, f"{lift.clean_rank:.1f}", f"{lift.rank:.1f}",
         f"{lift.cases} of {lift.users}")
        for system, positions in lifts.items() for position, lift in positions.items()
    ]  # fmt: skip
    note = (
        "In each case a wrong candidate is on trial, and a title asks for it in one of a few ways, such as 'recommend "
        "me next'. Lift: 1/rank with the text minus 1/rank without it, 95 % intervals over users; above 0: the text "
        "works. ID recommenders read no titles, so theirs is 0. The recommender content does and is not measured; in "
        "a fusion it keeps the scores of the clean titles."
    )
    headings = ["system", "the text is in", "lift", "mean rank without", "with", "cases of users"]
    return page.section("Titles that ask to be recommended", page.table(headings, rows, note))


def injection_note(lifts: Lifts, llm: str | None) -> list[str]:
    """A line for the table: of the best language model and of the fusion; none where neither was measured."""
    told = [
        f"{system} {lifts[system][IN_LIST].sentence} in its own title, {lifts[system][IN_HISTORY].sentence} in the "
        "last liked one"
        for system in (llm, FUSION) if system and system in lifts
    ]  # fmt: skip
    return [f"Lift of a title that asks for its item, in 1/rank: {'; '.join(told)}."] if told else []
