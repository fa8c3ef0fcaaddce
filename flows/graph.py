"""The stages of dvc.yaml as DVC itself sees them: the flow draws no graph of its own."""

from dataclasses import dataclass
from pathlib import Path

from recalign.common.errors import RecalignError
from recalign.pipeline import DVC_FILE


@dataclass(frozen=True)
class PlannedStage:
    """A stage of dvc.yaml and the names of the stages whose outputs it reads."""

    name: str
    needs: tuple[str, ...]


def planned_stages(root: Path) -> list[PlannedStage]:
    """Every stage of the project's dvc.yaml after the stages it needs; ties in the order of the file.

    Raw data (`.dvc` files) have no command to run and are left out, and so is what is in no default run (optional/).

    Raises RecalignError where dvc.yaml does not hold.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            stages = [s for s in repo.index.stages if not s.is_data_source and Path(s.path_in_repo) == DVC_FILE]
            graph = repo.index.graph  # an edge runs from a stage to what it needs
            order = {stage.name: number for number, stage in enumerate(stages)}
            needs = {stage.name: [s.name for s in graph.successors(stage) if not s.is_data_source] for stage in stages}
    except DvcException as error:
        raise RecalignError(f"{' '.join(str(error).split())}; 'dvc stage list' shows where") from None
    forwards = nx.DiGraph((need, name) for name in order for need in needs[name])
    forwards.add_nodes_from(order)
    names = nx.lexicographical_topological_sort(forwards, key=order.__getitem__)
    return [PlannedStage(name, tuple(sorted(needs[name], key=order.__getitem__))) for name in names]
