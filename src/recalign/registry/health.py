"""Whether the registry answers: a check of the doctor."""

import os
from pathlib import Path
from typing import Literal

from recalign.params.load import Params
from recalign.project import REGISTRY
from recalign.registry.tracking import checked_experiment, connect, reached, redacted

ANSWER_SECONDS = 5.0


def registry_state(params: Params) -> tuple[Literal["ok", "fail"], str, str]:
    """Ask the registry as `register` will, up to a file in the folder of its artifacts; no address shows a password."""
    uri, name = os.environ.get("MLFLOW_TRACKING_URI", ""), params.registry.model
    at_server = uri.startswith(("http://", "https://"))
    if at_server:
        import httpx

        try:
            httpx.get(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = f"MLFLOW_TRACKING_URI {redacted(uri)} does not answer ({redacted(str(error))})"
            return "fail", said, "start that server, or unset the variable"
    place = uri.rpartition("@")[2] or f"{REGISTRY} of the project"  # a database's password stands before the @
    if not at_server and not (uri.startswith("sqlite:") if uri else REGISTRY.is_file()):
        return "ok", f"model {name} in {place}", ""  # made at the first registration, or a database of another machine
    client = connect(Path())
    with reached(Path()):
        found = checked_experiment(client, name)
    files = "its folder of files can be written" if found else "its experiment is made at the first registration"
    return "ok", f"model {name} {'at' if at_server else 'in'} {redacted(place)}; {files}", ""
