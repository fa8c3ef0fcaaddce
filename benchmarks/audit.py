"""How often the audit calls clean cases leaking, and how often it finds each fault that it is made for.

    python benchmarks/audit.py --draws 200 --json audit.json
    python benchmarks/audit.py --prepared data/prepared

The first draws invented worlds, cleanly and with each fault, and prints the share of draws that are called leaking. The
second re-draws the candidate lists of prepared data the way published sample files do it, a stream seeded by the target
and then a shuffle by the same stream, and audits them.
"""

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from recalign.audit import finding
from recalign.audit.audit import Audit, audit_cases
from recalign.audit.cases import CaseSet, case_set
from recalign.common import columns as c
from recalign.common.artifacts import write_json
from recalign.data.records import Items, read_examples
from recalign.report.table import print_audit

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the worlds that the tests plant leaks in
from candidate_faults import clean_cases, draw_cases, draw_logs, sorted_logs, with_histories

WIDTH = 20


def _another(seed: int) -> CaseSet:
    return clean_cases(seed + 500_000, first_user=9000, name="fit")


def _seen(seed: int) -> Audit:
    cases = clean_cases(seed)
    return audit_cases(with_histories(cases, [[*h, t] for h, t in zip(cases.histories, cases.targets, strict=True)]))


def _copies(seed: int) -> Audit:
    cases = clean_cases(seed)
    return audit_cases(cases, replace(cases, users=cases.users + 9000, name="fit"))


def _users(seed: int) -> Audit:
    logs = draw_logs(seed)
    return audit_cases(draw_cases(logs, seed + 1), draw_cases(logs, seed + 2, name="fit"))


def _half_seeded(seed: int) -> Audit:
    return audit_cases(draw_cases(draw_logs(seed), seed + 1, seeded=0.5))


# What is drawn, and the probes of which at least one should find it.
DRAWN: dict[str, tuple[Callable[[int], Audit], set[str]]] = {
    "clean": (lambda seed: audit_cases(clean_cases(seed)), set()),
    "clean, with a second file": (lambda seed: audit_cases(clean_cases(seed), _another(seed)), set()),
    "list and place seeded by the target": (
        lambda seed: audit_cases(draw_cases(draw_logs(seed), seed + 1, seeded=1.0, seeded_place=True)),
        {"lookup"},
    ),
    "half of the list seeded by the target": (_half_seeded, {"overlap"}),
    "place seeded by the target": (
        lambda seed: audit_cases(draw_cases(draw_logs(seed), seed + 1, seeded_place=True)),
        {"equal places"},
    ),
    "a tenth more targets at the first place": (
        lambda seed: audit_cases(draw_cases(draw_logs(seed), seed + 1, skew=0.1)),
        {"place"},
    ),
    "lists in one hidden order": (
        lambda seed: audit_cases(draw_cases(sorted_logs(draw_logs(seed), seed), seed + 1)),
        {"order"},
    ),
    "the target in the history": (_seen, {"seen"}),
    "the same users in both files": (_users, {"users"}),
    "the same people under new ids": (_copies, {"copies"}),
}


def count(clean: int, resamples: int) -> list[dict[str, object]]:
    """A row a kind of world: the share of draws called leaking, and of those found by the probe that is meant to."""
    finding.RESAMPLES = resamples
    rows = []
    for name, (drawn, meant) in DRAWN.items():
        draws = max(1, clean // 10) if meant else clean  # a fault is found in nearly every draw
        leaks = [{found.probe for found in drawn(1000 * draw).leaks} for draw in range(draws)]
        called = sum(bool(found) for found in leaks)
        right = sum(meant <= found for found in leaks) if meant else None
        probes = sorted({probe for found in leaks for probe in found})
        rows.append({"world": name, "draws": draws, "leaking": called, "found": right, "probes": probes})
        shown = "—" if right is None else f"{right}/{draws}"
        print(f"| {name} | {called}/{draws} | {', '.join(sorted(meant)) or '—'} | {shown} |", flush=True)
    return rows


def published_form(prepared: Path, split: str) -> CaseSet:
    """Cases of prepared examples whose wrong items and shuffle both come from `random.seed(target)`."""
    items = Items.read(prepared).ids
    rows = read_examples(prepared, split)
    seen: dict[int, set[int]] = {}
    for example in rows:
        seen.setdefault(example.user_id, set()).update((*example.history, example.target))
    lists = []
    for example in rows:
        generator = random.Random(example.target)  # the fault itself
        wrong = [item for item in items if item not in seen[example.user_id]]
        drawn = [*generator.sample(wrong, WIDTH - 1), example.target]
        generator = random.Random(example.target)
        generator.shuffle(drawn)
        lists.append(drawn)
    users, histories = [row.user_id for row in rows], [row.history for row in rows]
    return case_set(f"{split}, seeded by the target", users, histories, lists, [row.target for row in rows])


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200, help="of clean worlds; a tenth of each fault")
    parser.add_argument("--resamples", type=int, default=200, help="of an interval; the audit itself takes 2000")
    parser.add_argument("--prepared", type=Path, help="data/prepared: its examples, lists seeded by the target")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.prepared is not None:
        test, learned = (published_form(options.prepared, split).sample() for split in (c.TEST, c.VALIDATION))
        for fit in (learned, None):
            audit = audit_cases(test, fit, split="time")
            print_audit(audit, test.name)
        return
    rows = count(options.draws, options.resamples)
    if options.json is not None:
        write_json(options.json, {"numpy": np.__version__, "rows": rows})


if __name__ == "__main__":
    main()
