"""The stage `base`: the base model as a folder of safetensors with its id, revision and sha256."""

import logging

from recalign.common.artifacts import read_json
from recalign.llm.model.base import fetch_base
from recalign.llm.model.files import IDENTITY
from recalign.params.load import Params
from recalign.project import Project

log = logging.getLogger(__name__)


def base(params: Params, project: Project = Project()) -> None:
    """Fetch the base model that `base.model` names into data/models/base."""
    fetch_base(params.base, project.base)
    identity = read_json(project.base / IDENTITY)
    log.info("base model: %s, revision %s, sha256 %s", identity["id"], identity["revision"], identity["sha256"][:12])
