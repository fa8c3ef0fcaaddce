"""The flow behind align/dpo4rec: texts about tastes, what they help, and their writer aligned (docs/dpo4rec.md).

A flow of its own: it walks no stage that the default run has not asked for, and registers nothing. DVC brings the few
stages before it (up to `prepare`, and `base`) up to date.
"""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Failed

from recalign.common.errors import RecalignError
from recalign.params.load import load_params
from recalign.project import DPO4REC, PARAMS
from reproduce import passed_on, reproduce_stage
from runs import name_run, only_run

STAGE = "optional/dvc.yaml:dpo4rec"


def align_texts_in(root: Path) -> State:
    """Bring the stage dpo4rec of the project at `root` up to date, and keep its page with the run; the last state."""
    params = load_params(root / PARAMS)
    name_run("align/dpo4rec", params, "dpo4rec")
    task = reproduce_stage.with_options(name="dpo4rec", retries=params.schedule.retries)
    state: State = task(STAGE, root, params.schedule.timeout_minutes, alone=False, return_state=True)
    page = root / DPO4REC / "report.md"
    if state.is_completed() and page.is_file():
        create_markdown_artifact(page.read_text(encoding="utf-8"), key="dpo4rec", description=f"what {page} says")
    return passed_on(state)


@flow(name="align", persist_result=False)
def dpo4rec() -> State:
    """Align the writer of texts in the working directory. Everything is read from params.yaml."""
    try:
        with only_run(Path.cwd(), "align/dpo4rec", load_params().schedule):
            return align_texts_in(Path.cwd())
    except RecalignError as error:  # one line for a person, not a stack trace
        return Failed(message=str(error))
