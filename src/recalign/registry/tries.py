"""Which tries the present champion has met: they share one error budget, so they are kept in the registry.

A try is a package (its digest) on a set of cases; the same again is the same try. The list lies in a tag of the
champion's version, and of the registered model while popularity is the bar, so that reruns, other checkouts and deleted
challengers change nothing. Only a champion that won outright at the gate starts a new list. One that a person made, or
that came in within registry.margin, goes on with the list of the one before, and after a roll-back the old champion's
own list goes on.
"""

import json

from mlflow import MlflowClient

from recalign.registry.promotion import champions, registered_model, won_outright

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
