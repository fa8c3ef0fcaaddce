"""The stages of this project's dvc.yaml: each reads folders, computes, and writes one folder."""

import logging
import shutil
from pathlib import Path

from moltc import project
from moltc.params import Params
from recalign.common.artifacts import folder, replacing, write_json
from recalign.common.errors import RecalignError

log = logging.getLogger(__name__)


def prepare(params: Params, root: Path = Path()) -> None:
    """Clean pairs, their views, the quarantine and the audit.

    Raises RecalignError where quarantine takes more than data.max_rejected: quarantine.parquet then lies in reports/.
    """
    from moltc.audit import audit_pairs, given_split
    from moltc.prepared import write_prepared
    from moltc.splits import RANDOM, split_views
    from moltc.validation import read_pairs, refusal
    from recalign.common import columns as c

    with folder(root / project.PREPARED) as out:
        clean = read_pairs(params.data, root, root / project.SPILL)
        views = split_views(clean, params.split)
        summary = write_prepared(out, clean, params.data.kind, views)
        for rule in summary["rules"]:
            if rule["failed"]:
                print(f"{rule['failed']:>7} rows, {rule['level']}: {rule['name']}")
        copy = root / project.REPORTS / "quarantine.parquet"
        if refused := refusal(clean, params.data.max_rejected):
            with replacing(copy) as partial:
                shutil.copyfile(out / "quarantine.parquet", partial)
            raise RecalignError(f"{refused}; {copy} holds them with their reasons")
        copy.unlink(missing_ok=True)
        train, test = given_split(clean.given) if params.data.split else (views == c.TRAIN, views == RANDOM)
        found = audit_pairs(clean, params.data.kind, train, test)
        write_json(out / "audit.json", [finding.as_dict() for finding in found])
    counts = ", ".join(f"{view} {count}" for view, count in summary["views"].items())
    rows = summary["pairs"]
    print(f"{rows['kept']} of {rows['read']} pairs of {summary['molecules']} molecules: {counts}")
    for finding in found:
        shown = "" if finding.figure is None else f" {finding.figure.value:.3f}"
        print(f"audit, {finding.probe}: {finding.verdict}{shown} ({finding.note or finding.measures})")
