"""What the gate said of a version when it was registered: what a person reads before moving an alias by hand.

Which tries the present champion has met: they share one error budget, so they are kept in the registry.

A try is a package (its digest) on a set of cases; the same again is the same try. The list lies in a tag of the
champion's version, and of the registered model while popularity is the bar, so that reruns, other checkouts and deleted
challengers change nothing. Only a champion that won outright at the gate starts a new list. One that a person made, or
that came in within registry.margin, goes on with the list of the one before, and after a roll-back the old champion's
own list goes on.
"""

import json
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

from mlflow import MlflowClient

from recalign.common.artifacts import read_json
from recalign.registry.guards import Guard, broken
from recalign.registry.promotion import VERDICT, champions, registered_model, won_outright


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


TRIES = "gate_tries"  # tag: JSON list of tries, the first one first
SHOWN = 12  # characters of each digest that a try keeps


def count_try(client: MlflowClient, name: str, package: str, cases: str) -> int:
    """The number (from 1) of this try against the present bar; written before its ranks are compared.

    package: digest of what is registered; cases: digest of what it was ranked on. The registered model must exist.
    """
    this = f"{package[:SHOWN]}-{cases[:SHOWN]}"
    past = champions(client, name)
    tried = _tried(client, name, past)
    if this not in tried:
        tried = [*tried, this]
        if past:
            client.set_model_version_tag(name, past[-1], TRIES, json.dumps(tried))
        else:
            client.set_registered_model_tag(name, TRIES, json.dumps(tried))
    return tried.index(this) + 1


def _tried(client: MlflowClient, name: str, past: list[str]) -> list[str]:
    """The tries that count, oldest list first: back to the last champion that won outright, else to popularity's."""
    lists = []
    for version in reversed(past):
        lists.append(client.get_model_version(name, version).tags.get(TRIES, "[]"))
        if won_outright(client, name, version):
            break
    else:
        model = registered_model(client, name)
        lists.append(model.tags.get(TRIES, "[]") if model else "[]")
    return list(dict.fromkeys(this for kept in reversed(lists) for this in json.loads(kept)))
