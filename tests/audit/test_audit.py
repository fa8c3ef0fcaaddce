"""The audit finds each planted leak and is silent on clean data."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidate_faults import clean_cases, draw_cases, draw_logs, sorted_logs, with_histories
from numpy.typing import NDArray

from recalign.audit import finding
from recalign.audit.audit import Audit, audit_cases
from recalign.audit.blind import Lookup, count_scores, first_place_share, learn_order
from recalign.audit.cases import CaseSet, Log, case_set
from recalign.audit.finding import EqualTargets, permutation_test
from recalign.cli import main
from recalign.common.errors import RecalignError


def verdict(audit: Audit, probe: str) -> str:
    return next(found.verdict for found in audit.findings if found.probe == probe)


def leaks(audit: Audit) -> set[str]:
    return {found.probe for found in audit.leaks}


def write_cases(path: Path, cases: CaseSet, *, users: bool = True) -> Path:
    rows = [
        {"case": row, **({"user_id": int(cases.users[row])} if users else {}), "history": cases.histories[row],
         "candidates": cases.candidates[row].tolist(), "target": int(cases.targets[row])}
        for row in range(len(cases))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# The parts, on numbers that a person can check


def test_hits_are_shared_among_equals() -> None:
    """Two of three at the top: half a hit; alone at the top: one; below: none."""
    scores = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    assert first_place_share(scores, np.array([0, 0, 1])).tolist() == [0.5, 1.0, 0.0]


def test_an_order_is_recovered_from_steps_that_share_items() -> None:
    """a < b < c < d from three lists, none of which shows it whole."""
    order = learn_order([[10, 7], [7, 3], [3, 99]])
    assert order.items.tolist() == [3, 7, 10, 99]
    assert order.items[np.argsort(order.positions)].tolist() == [10, 7, 3, 99]
    positions, known = order.at(np.array([7, 5]))
    assert (known.tolist(), positions[1]) == ([True, False], 0.0)


def test_agreement_of_equal_targets_by_hand() -> None:
    """Target 1 stands in the cases of three users: two have the same set, two the same place."""
    cases = case_set("cases", [1, 2, 3, 4], [[8]] * 4, [[1, 5, 6], [1, 6, 5], [5, 1, 7], [2, 5, 6]], [1, 1, 1, 2])
    equal = EqualTargets.of(cases)
    assert len(equal) == 3
    assert equal.same_set().tolist() == [0.5, 0.5, 0.0]
    assert equal.same_place().tolist() == [0.5, 0.5, 0.0]
    assert equal.common_negatives().tolist() == [0.75, 0.75, 0.5]


def test_a_users_own_repetition_is_no_agreement() -> None:
    cases = case_set("cases", [1, 1], [[8], [9]], [[1, 5, 6], [1, 5, 6]], [1, 1])
    assert len(EqualTargets.of(cases)) == 0
    assert verdict(audit_cases(cases), "equal sets") == "not applicable"


def test_files_that_draw_from_items_of_their_own_are_no_leak() -> None:
    """Hidden items: half of them are for validation, half for test, and lists are drawn within a half."""
    generator = np.random.default_rng(0)

    def drawn(name: str, pool: NDArray[np.int64], users: int) -> CaseSet:
        targets = generator.choice(pool[:10], 120)
        lists = [[t, *generator.permutation(pool[pool != t])[:9]] for t in targets.tolist()]
        return case_set(name, list(range(users, users + 120)), [[999]] * 120, lists, targets.tolist())

    test, validation = drawn("test", np.arange(40), 0), drawn("validation", np.arange(40, 80), 1000)
    audit = audit_cases(test, validation)
    assert verdict(audit, "overlap") == "clean"
    assert verdict(audit, "equal sets") == "clean"
    seeded = case_set("seeded", test.users.tolist(), test.histories, [
        [t, *sorted(set(range(40)) - {t}, key=lambda item: hash((t, item)))[:9]] for t in test.targets.tolist()
    ], test.targets.tolist())  # fmt: skip
    assert verdict(audit_cases(seeded, validation), "overlap") == "leak"


def test_a_permutation_test_stops_early_where_there_is_nothing_and_is_small_where_there_is() -> None:
    """Ten permutations that reach the figure end it; one in a thousand is the least p."""
    same = permutation_test(lambda swap: np.array([1.0]), 5, seed=1)
    assert (same.figure, same.chance, same.p) == (1.0, 1.0, 1.0)
    found = permutation_test(lambda swap: np.array([1.0 if swap is None else 0.0]), 5, seed=1)
    assert (found.chance, found.p) == (0.0, 1 / 1000)
    small = permutation_test(lambda swap: np.array([0.6 if swap is None else 0.5]), 5, seed=1, times=1.25)
    assert small.p == 1.0


def test_the_lookup_reads_other_users_memories_only() -> None:
    """User 1's own list is no memory; user 2's is, and its target is found by its list and place."""
    cases = case_set("cases", [1, 1, 2], [[9]] * 3, [[1, 2, 3], [1, 2, 3], [1, 2, 3]], [1, 1, 1])
    assert Lookup.of(cases, None).scores()[0].argmax() == 0
    alone = case_set("cases", [1, 1], [[9]] * 2, [[1, 2, 3], [1, 2, 3]], [1, 1])
    assert len(set(Lookup.of(alone, None).scores().ravel())) == 1


def test_cases_that_cannot_be_audited_are_refused() -> None:
    for candidates, targets, said in (
        ([], [], "holds no case"),
        ([[1, 2], [1, 2, 3]], [1, 1], "case 1 has 3 candidates, but 2 in the first case"),
        ([[1, 1]], [1], "hold item 1 twice"),
        ([[1, 2]], [3], "lack the target 3"),
    ):
        with pytest.raises(RecalignError, match=said):
            case_set("cases", [1] * len(candidates), [[9]] * len(candidates), candidates, targets)


def drawn_by_popularity(law: Callable[[np.ndarray], np.ndarray], seed: int, name: str) -> tuple[CaseSet, Log]:
    """Candidates in proportion to an item's events in the log, targets in proportion to `law` of these events."""
    counts = np.arange(3000) % 30 + 1
    log = Log("log", np.full(counts.sum(), -1), np.repeat(np.arange(3000), counts))
    generator = np.random.default_rng(seed)
    lists, targets = [], []
    for _ in range(900):
        target = int(generator.choice(3000, p=law(counts) / law(counts).sum()))
        chances = np.where(np.arange(3000) == target, 0.0, counts)
        wrong = generator.choice(3000, 19, replace=False, p=chances / chances.sum())
        lists.append(np.insert(wrong, generator.integers(20), target).tolist())
        targets.append(target)
    users = (np.arange(900) // 3 + 10_000 * seed).tolist()
    return case_set(name, users, [[9999]] * 900, lists, targets), log


@pytest.mark.parametrize(
    ("law", "told"),
    [
        (lambda counts: counts.astype(float), "clean"),
        (lambda counts: 1.0 / counts, "warning"),
        (lambda counts: np.where(counts < 5, 20.0, counts), "warning"),
        (lambda counts: counts.astype(float) ** 3, "warning"),
        (lambda counts: np.where((counts > 10) & (counts < 16), 3.0 * counts, counts), "warning"),
    ],
    ids=["as the candidates", "rarest first", "below a threshold", "most frequent first", "in between"],
)
def test_a_rule_on_training_counts_is_found_whatever_its_form(law: Callable[..., Any], told: str) -> None:
    """From the validation cases, and from other users of the same file alone."""
    cases, log = drawn_by_popularity(law, 1, "cases")
    fit, _ = drawn_by_popularity(law, 2, "fit")
    for scores in (count_scores(cases, fit, log), count_scores(cases, None, log)):
        assert finding.counts_finding(cases, scores).verdict == told


def test_a_rule_on_counts_is_to_be_beaten_where_lists_are_drawn_by_counts_alone() -> None:
    cases = clean_cases(1, users=30)
    assert "training count" in audit_cases(cases, by_count=True).scores
    assert "training count" not in audit_cases(cases).scores


def test_where_all_candidates_are_equally_rare_counts_say_nothing() -> None:
    scores = count_scores(clean_cases(1, users=30), None, Log("log", np.array([1]), np.array([9999])))
    assert set(scores.ravel().tolist()) == {0.0}


# Planted leaks


def test_clean_cases_are_clean_with_and_without_another_file() -> None:
    assert leaks(audit_cases(clean_cases(1))) == set()
    assert leaks(audit_cases(clean_cases(1), clean_cases(2, first_user=500, name="fit"))) == set()


def test_lists_seeded_by_the_target_are_found_from_another_file_and_alone() -> None:
    """`random.seed(target)` before the draw and the shuffle: a lookup finds most targets without a history."""
    logs = draw_logs(1)
    cases = draw_cases(logs, 2, seeded=1.0, seeded_place=True)
    fit = draw_cases(draw_logs(3, first_user=500), 4, name="fit", seeded=1.0, seeded_place=True)
    for audit in (audit_cases(cases), audit_cases(cases, fit)):
        assert leaks(audit) >= {"lookup", "equal places", "overlap"}
        lookup = next(found for found in audit.findings if found.probe == "lookup")
        assert lookup.figure is not None
        assert lookup.figure.low > 0.7 > 0.3 > (lookup.chance or 1.0)


def test_equal_sets_of_equal_targets_are_found() -> None:
    """The same list for a target wherever it stands, shuffled afresh."""
    cases = clean_cases(5, users=60)
    first = {int(target): row for row, target in reversed(list(enumerate(cases.targets)))}
    order = np.argsort(np.random.default_rng(1).random(cases.candidates.shape), axis=1)
    lists = np.take_along_axis(cases.candidates[[first[int(target)] for target in cases.targets]], order, axis=1)
    users, histories = cases.users.tolist(), [list(history) for history in cases.histories]
    copied = case_set("cases", users, histories, lists.tolist(), cases.targets.tolist())
    assert leaks(audit_cases(copied)) == {"lookup", "equal sets", "overlap"}


def test_partly_equal_lists_are_found() -> None:
    """A third of the wrong items comes from the target's stream, the place does not."""
    assert "overlap" in leaks(audit_cases(draw_cases(draw_logs(6, users=60), 7, seeded=0.33)))


def test_a_place_that_is_a_function_of_the_target_is_found() -> None:
    assert leaks(audit_cases(draw_cases(draw_logs(8, users=60), 9, seeded_place=True))) >= {"lookup", "equal places"}


def test_a_place_where_targets_stand_too_often_is_found() -> None:
    audit = audit_cases(draw_cases(draw_logs(10), 11, skew=0.2))
    assert "place" in leaks(audit)
    assert "stand at place 1 of 20" in next(found.note for found in audit.leaks if found.probe == "place")


def test_lists_sorted_by_a_hidden_order_are_found_from_the_cases_alone() -> None:
    logs = sorted_logs(draw_logs(12, users=200), 13)
    assert leaks(audit_cases(draw_cases(logs, 14))) == {"order"}


def test_and_from_the_interactions() -> None:
    """Few cases cannot show the order; the log that they come from can."""
    cases = draw_cases(sorted_logs(draw_logs(15, users=12), 13), 18)
    cases = cases.take(np.arange(0, len(cases), 4))
    log = sorted_logs(draw_logs(17, users=300, first_user=500), 13)
    events = Log("log", np.repeat(log.users, log.logs.shape[1]), log.logs.ravel())
    assert verdict(audit_cases(cases), "order") == "not applicable"
    assert leaks(audit_cases(cases, log=events)) == {"order"}


def test_histories_that_hold_the_target_are_found() -> None:
    cases = clean_cases(18, users=60)
    own = with_histories(cases, [[*h, t] for h, t in zip(cases.histories, cases.targets, strict=True)])
    assert "seen" in leaks(audit_cases(own))


def test_answers_in_the_interactions_are_found() -> None:
    cases = clean_cases(19)
    audit = audit_cases(cases, log=Log("log", cases.users, cases.targets), split="time")
    assert leaks(audit) == {"answers"}


def test_shared_users_are_a_leak_where_users_were_split_and_none_where_times_were() -> None:
    logs = draw_logs(20)
    early, late = replace(logs, logs=logs.logs[:, :8]), replace(logs, logs=logs.logs[:, 2:])
    fit, cases = draw_cases(early, 21, name="fit"), draw_cases(late, 22)
    cases = cases.take(np.flatnonzero(np.arange(len(cases)) % 2 == 1))  # each user's last item alone
    assert leaks(audit_cases(cases, fit)) == {"users"}
    later = audit_cases(cases, fit, split="time")
    assert (leaks(later), verdict(later, "users")) == (set(), "not applicable")


def test_examples_shared_by_splits_are_found_under_other_user_ids() -> None:
    cases = clean_cases(23)
    fit = clean_cases(24, first_user=500, name="fit")
    copied = cases.take(np.arange(8))
    fit = replace(
        fit,
        histories=copied.histories + fit.histories[8:],
        candidates=np.concatenate([copied.candidates, fit.candidates[8:]]),
        places=np.concatenate([copied.places, fit.places[8:]]),
    )
    assert "examples" in leaks(audit_cases(cases, fit))


def test_near_copies_of_users_are_found() -> None:
    """The same people under new ids, one item of theirs changed."""
    cases = clean_cases(25, users=60)
    twins = replace(cases, users=cases.users + 1000, name="fit")
    twins = with_histories(twins, [[399, *history[1:]] for history in cases.histories])
    found = audit_cases(cases, twins)
    assert verdict(found, "copies") == "leak"
    assert verdict(found, "users") == "clean"


def test_popularity_and_title_length_warn_but_are_no_leaks() -> None:
    cases = clean_cases(26, users=60)
    titles = {item: "x" * (9 if item in set(cases.targets.tolist()) else 3) for item in range(400)}
    audit = audit_cases(cases, titles=titles)
    assert leaks(audit) == set()
    assert (verdict(audit, "popularity"), verdict(audit, "title length")) == ("warning", "warning")
    assert audit.sentence.startswith("No leak found; warnings, which are no leaks: ")


def false_alarms(draws: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The clean draws that are called leaking, every second one with another file beside it."""
    monkeypatch.setattr(finding, "RESAMPLES", 50)  # intervals are wide apart from their bounds; p decides the rest
    found = []
    for draw in range(draws):
        fit = clean_cases(50_000 + draw, users=60, first_user=500, name="fit") if draw % 2 else None
        if audit_cases(clean_cases(10 * draw, users=80), fit).leaks:
            found.append(draw)
    return found


def test_few_clean_draws_are_called_leaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 5 % over draws without end, 5 or more of 30 would be a chance of 1 in 60."""
    assert len(false_alarms(30, monkeypatch)) <= 4


@pytest.mark.slow
def test_at_most_one_in_twenty_of_200_clean_draws_is_called_leaking(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(false_alarms(200, monkeypatch)) <= 10


# The command


def run(*arguments: object) -> int:
    return main(["audit", *map(str, arguments)])


def test_the_command_says_clean_with_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", clean_cases(1))
    out = tmp_path / "audit.json"
    assert run("--cases", cases, "--json", out) == 0
    printed = capsys.readouterr().out
    assert "cases.jsonl: 480 cases, 120 users, 20 candidates each" in printed
    assert "No leak found" in printed
    kept = json.loads(out.read_text())
    assert kept["verdict"] == "clean"
    assert kept["probes"]["lookup"]["verdict"] == "clean"
    assert set(kept["files"]) == {"cases.jsonl"}


def test_the_command_names_the_leak_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = sorted_logs(draw_logs(12, users=200), 13)
    cases = write_cases(tmp_path / "cases.jsonl", draw_cases(logs, 14), users=False)
    assert run("--cases", cases) == 1
    printed = capsys.readouterr().out
    assert "Leak: order." in printed
    assert "users unknown" in printed


def test_the_interactions_are_read_in_their_order_or_by_time(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", draw_cases(sorted_logs(draw_logs(15, users=20), 13), 16))
    log = sorted_logs(draw_logs(17, users=300, first_user=500), 13)
    users, places = np.repeat(log.users, log.logs.shape[1]), np.tile(np.arange(log.logs.shape[1]), len(log.users))
    rows = list(zip(users, log.logs.ravel(), places, strict=True))
    in_order, by_time = tmp_path / "order.csv", tmp_path / "time.csv"
    in_order.write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i, _ in rows))
    by_time.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in reversed(rows)))
    assert [run("--cases", cases, "--interactions", path) for path in (in_order, by_time)] == [1, 1]


def test_text_ids_have_the_findings_of_numbers(tmp_path: Path) -> None:
    """Of an Amazon-like file: figures and verdicts; intervals are drawn by a hash of the user."""
    numbers = write_cases(tmp_path / "numbers.jsonl", clean_cases(1))
    texts = tmp_path / "texts.jsonl"
    with texts.open("w") as file:
        for case in map(json.loads, numbers.read_text().splitlines()):
            named = {name: [f"B{item}" for item in case[name]] for name in ("history", "candidates")}
            user, target = f"A{case['user_id']}WSJ", f"B{case['target']}"
            file.write(json.dumps({**case, **named, "user_id": user, "target": target}) + "\n")
    found = []
    for cases in (numbers, texts):
        assert run("--cases", cases, "--json", tmp_path / "found.json") == 0
        probes = json.loads((tmp_path / "found.json").read_text())["probes"]
        asked = ("place", "seen", "equal sets", "equal places", "examples")
        found.append({name: (probes[name]["figure"]["value"], probes[name]["verdict"]) for name in asked})
    assert found[0] == found[1]


CASE = {"case": 0, "user_id": 7, "history": [1, 2], "candidates": [3, 4, 5], "target": 4}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "cases.jsonl holds no case; write a JSON object a line"),
        ([{k: v for k, v in CASE.items() if k != "target"}], "cases.jsonl:1: no field 'target'"),
        ([CASE | {"target": 9}], "cases.jsonl:1: target 9 is not among the candidates"),
        ([CASE | {"candidates": [3, 4, 4]}], "cases.jsonl:1: candidates hold item 4 twice"),
        ([CASE | {"candidates": [3, 3, 4]}], "cases.jsonl:1: candidates hold item 3 twice"),
        ([CASE | {"candidates": []}], "cases.jsonl:1: candidates are empty"),
        ([CASE, CASE | {"case": 1, "candidates": [3, 4]}], "cases.jsonl:2: 2 candidates, but 3 in the first case"),
        ([CASE, {**CASE, "case": 1, "user_id": 7.5}], "cases.jsonl:2: user_id is 7.5; a whole number or a text"),
        ([CASE, {k: v for k, v in CASE.items() if k != "user_id"}], "cases.jsonl:2: no user_id, but the first"),
        ([CASE | {"history": [77]}], "cases.jsonl:1: history holds item 77, which --items lacks"),
        (["{"], "cases.jsonl:1: not JSON"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    lines: list[object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\n" + "".join(f"{i},t{i}\n" for i in range(1, 10)))
    assert run("--cases", cases, "--items", items) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_two_protocols_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", clean_cases(1))
    fit = tmp_path / "fit.jsonl"
    fit.write_text(json.dumps(CASE) + "\n")
    assert run("--cases", cases, "--fit", fit) == 2
    assert "fit.jsonl has 3 candidates a case, cases.jsonl has 20: mixed protocols" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user_id\n1\n", "has no column 'item_id' (it has user_id)"),
        ("user_id,item_id\n1, \n", "log.csv:2: item_id is ' '; a whole number or a text is needed"),
        ("user_id,item_id\n", "log.csv holds no row"),
        ("user_id,item_id,timestamp\n1,2,soon\n", "column 'timestamp' must hold numbers, or ISO 8601"),
    ],
)
def test_a_bad_log_is_one_line_with_exit_code_2(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", clean_cases(1))
    (tmp_path / "log.csv").write_text(text)
    assert run("--cases", cases, "--interactions", tmp_path / "log.csv") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("name", "code"), [("cases.jsonl", 0), ("cases_ordered.jsonl", 1)])
def test_the_real_files_get_the_verdicts_of_the_docs(shared_data: Path, name: str, code: int) -> None:
    """The published protocol's Last.fm cases are sorted; the clean ones are sets."""
    folder = shared_data / "lastfm"
    assert run("--cases", folder / name) == code
    assert run("--cases", folder / name, "--interactions", folder / "train_interactions.csv") == code
