"""A registered version, loaded in a fresh process, answers requests: before an alias moves, and to time it.

Two versions are loaded into one process and answer the same requests in turn, so that what else the machine does meets
both alike. `python -m recalign.registry.first_answer ASKED TOLD` is that process: JSON in, JSON out.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.ranking.trial import Trial
from recalign.registry.tracking import URI, tracking_uri

MINUTES = 30  # that loading and all answers may take
LONGEST = 300  # characters of what went wrong
NUMBER = re.compile(r"[+-]?[0-9.]+").fullmatch


class Request(TypedDict):
    """What a client sends: titles of the history and of the candidates, and how many to answer."""

    history: list[str]
    candidates: list[str]
    k: int


class Questions(TypedDict):
    """What the fresh process is given: the models, and what each is asked."""

    uris: list[str]
    requests: list[Request]


class Told(TypedDict):
    """What it gives back: as `Answers`."""

    seconds: list[list[float]]
    silent: str


@dataclass(frozen=True)
class Answers:
    """seconds [models][requests], the first model's first; silent: why the first one did not answer, "" where it did;
    others that fail have no seconds."""

    seconds: tuple[tuple[float, ...], ...] = ()
    silent: str = ""

    @property
    def pair(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of the first model and the second; nothing where one of them did not answer."""
        return (self.seconds[0], self.seconds[1]) if len(self.seconds) == 2 else ((), ())


def requests_of(trial: Trial, catalogue: Items, users: int) -> list[Request]:
    """A request a user, of the first `users` of a trial, as a client asks: titles of the history and the candidates.

    Titles that could be taken for an id, or for another item's, are left out.
    """
    folded = Counter(title.casefold() for title in catalogue.titles.values())
    plain = {item: own for item, own in catalogue.titles.items() if folded[own.casefold()] == 1 and not NUMBER(own)}
    first: dict[int, Request] = {}
    for case in trial.cases:
        history, candidates = (
            [plain[item] for item in items if item in plain] for items in (case.example.history, case.candidates)
        )
        if len(first) < users and case.example.user_id not in first and history and candidates:
            first[case.example.user_id] = {"history": history, "candidates": candidates, "k": len(candidates)}
    return list(first.values())


def first_answers(name: str, versions: Sequence[str], requests: Sequence[Request], root: Path, home: Path) -> Answers:
    """What versions of a registered model answer, each as a client loads it, in a process of their own.

    root: where data/models/base lies; home: the checkout whose registry it is. The first version alone must answer;
    where there are no requests, the one that was registered with it as an example.
    """
    with tempfile.TemporaryDirectory() as temporary:
        asked, told = Path(temporary) / "asked.json", Path(temporary) / "told.json"
        uris = [f"models:/{name}/{version}" for version in versions]
        asked.write_text(json.dumps({"uris": uris, "requests": list(requests)}), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "recalign.registry.first_answer", str(asked), str(told)]
        environment = {**os.environ, URI: tracking_uri(home)}
        try:
            done = subprocess.run(
                command, cwd=root, env=environment, capture_output=True, text=True, timeout=60 * MINUTES, check=False
            )
        except subprocess.TimeoutExpired:
            return Answers(silent=f"it did not answer within {MINUTES} minutes")
        if done.returncode or not told.is_file():
            said = " ".join(done.stderr.split())[-LONGEST:]
            return Answers(silent=said or f"its process ended with {done.returncode}")
        found = json.loads(told.read_text(encoding="utf-8"))
    return Answers(tuple(map(tuple, found["seconds"])), found["silent"])


def _answered(asked: Questions) -> Told:
    """In the fresh process: load, answer the first request unmeasured, then all of them in turn."""
    models = []
    for place, uri in enumerate(asked["uris"]):
        try:
            model = _loaded(uri)
            _ask_first(model, asked["requests"])
        except Exception as error:  # a package fails in ways of its own
            if place == 0:
                return {"seconds": [], "silent": " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]}
            continue
        models.append(model)
    seconds: list[list[float]] = [[] for _ in models]
    for number, request in enumerate(asked["requests"] if len(models) > 1 else []):
        order = range(len(models)) if number % 2 == 0 else reversed(range(len(models)))
        took = {place: _timed(models[place], request) for place in order}
        for place, own in took.items():
            if all(took.values()):  # a request that one of them refuses times neither
                seconds[place].append(own)
    return {"seconds": seconds, "silent": ""}


def _timed(model: Any, request: Request) -> float:
    """Seconds of an answer; 0 where there is none."""
    begun = time.perf_counter()
    try:
        _ask(model, request)
    except Exception as error:
        print(f"not timed: {error}", file=sys.stderr)
        return 0.0
    return time.perf_counter() - begun


def _loaded(uri: str) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(uri)


def _ask_first(model: Any, requests: Sequence[Request]) -> None:
    """The first request, or the model's own example; one of before there were examples is only loaded."""
    if requests:
        _ask(model, requests[0])
    elif model.input_example is not None:
        _check(model.predict(model.input_example))


def _ask(model: Any, request: Request) -> None:
    """Raises RecalignError where the answer holds no item."""
    import pandas as pd

    _check(model.predict(pd.DataFrame([request])))


def _check(answers: Sequence[Mapping[str, object]]) -> None:
    (answer,) = answers
    if not answer["items"]:
        raise RecalignError("the answer to a request holds no item")


if __name__ == "__main__":
    told = _answered(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")
