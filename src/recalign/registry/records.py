"""What the gate said of a version when it was registered: what a person reads before moving an alias by hand."""

import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

from mlflow import MlflowClient

from recalign.common.artifacts import read_json
from recalign.registry.guards import Guard, broken
from recalign.registry.promotion import VERDICT


@dataclass(frozen=True)
class Records:
    """The guards of a version's verdict; against: whom it was compared with ("version 3", "popularity"), "" where no
    verdict was kept."""

    version: str
    against: str = ""
    guards: tuple[Guard, ...] = ()

    @property
    def broken(self) -> str:
        """The guards that it broke, in words; "" of none."""
        return "; ".join(guard.sentence for guard in broken(self.guards))

    def lines(self, champion: str | None) -> list[str]:
        """A line a guard, and whom they compare with; champion: the present one's version."""
        if not self.guards:
            return [
                f"version {self.version} has no records of guards: the gate did not judge it, or they were not kept"
            ]
        stale = champion is not None and self.against != f"version {champion}"
        other = f", which is not the present champion, version {champion}" if stale else ""
        told = [f"guard: {guard.sentence}" for guard in self.guards]
        return [f"version {self.version} was compared with {self.against}{other}:", *told]


def records_of(client: MlflowClient, name: str, version: str) -> Records:
    """From gate.json of the version's run; without guards where there is none, as of versions that were not judged."""
    known = {field.name for field in fields(Guard)}
    run_id = client.get_model_version(name, version).run_id
    if not run_id or VERDICT not in {file.path for file in client.list_artifacts(run_id)}:
        return Records(version)
    with tempfile.TemporaryDirectory() as temporary:
        told = read_json(Path(client.download_artifacts(run_id, VERDICT, temporary)))
    guards = [Guard(**{key: value for key, value in row.items() if key in known}) for row in told.get("guards", [])]
    return Records(version, told["bar"], tuple(guards))
