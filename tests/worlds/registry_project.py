"""A small project as the stages leave it, made without running them: base, adapters, catalogue, cases and ranks."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pages import ROOT
from ruamel.yaml import YAML

from recalign import project as layout
from recalign.common.artifacts import folder, folder_digest, read_json, write_json, write_parquet, write_text
from recalign.data.records import Items
from recalign.evaluation.metrics import METRICS, metric_values
from recalign.evaluation.ranks import SAMPLED, CaseList, in_case_order, write_system_ranks
from recalign.llm.model.adapters import adapter_digest
from recalign.llm.model.base import fetch_base, load_language_model
from recalign.params.load import Params, parse_params
from recalign.ranking.fusion import FittedFusion, Part
from recalign.ranking.measured import language_model_artifacts, recommender_artifacts
from recalign.recommenders.popularity import Popularity
from recalign.registry.tracking import connect
from recalign.training.results import save_adapter

GENRES = ("crime", "drama", "comedy")
WORDS = ("House", "Secret", "Last", "Winter", "Return", "King", "Story", "Fall", "Legend", "Heart", "River", "Fire")
TITLES = [f"The {word} of Night" for word in WORDS]
USERS = 10  # the fewest that registry.min_users allows


@functools.cache
def empty_registry() -> Path:
    """An MLflow database without a run: making its tables takes seconds, copying it none."""
    folder = Path(tempfile.mkdtemp(prefix="registry-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(folder)
    return folder / "mlflow.db"


def small_params() -> Params:
    """The repository's params at budget smoke; this small project's users are enough, and its random model may stay."""
    tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    own = tree["registry"] | {"min_users": USERS, "allow_random": True}
    return parse_params(tree | {"budget": "smoke", "registry": own})


def work_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a project the working directory, whose own registry and base are those that are asked."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RECALIGN_BASE", raising=False)
    monkeypatch.chdir(root)


def new_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Write a project with an S-DPO adapter and an empty registry, and work in it; its params."""
    params = small_params()
    write_project(params, ROOT / "params.yaml", root)
    shutil.copy(empty_registry(), root / "mlflow.db")
    work_in(root, monkeypatch)
    return params


def write_base(params: Params, root: Path) -> None:
    """data/models/base and data/models/sft: the tiny random model and an adapter."""
    fetch_base(params.base, root / layout.BASE)
    write_adapter(params, root, root / layout.SFT, seed=1)


def write_adapter(params: Params, root: Path, out: Path, seed: int) -> None:
    """An adapter of the project's base whose two matrices are drawn from `seed`, so that it changes scores."""
    import torch

    model = load_language_model(root / layout.BASE, params.base, new_adapter=params.lora, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    with folder(out) as partial:
        save_adapter(model, partial)


def write_prepared(root: Path, *, digest: str = "first", days: int = 0) -> None:
    """data/prepared: twelve films, two test cases a user; `days` moves the targets on, as a newer log would."""
    ids = list(range(1, len(TITLES) + 1))
    examples = [_example(user, turn, days) for user in range(1, USERS + 1) for turn in range(2)]
    candidates = [
        {"manifest": "uniform", "example_id": e["example_id"], "user_id": e["user_id"], "candidates": ids[6:],
         "target_index": e["target"] - 7}
        for e in examples
    ]  # fmt: skip
    genres = [[("genre", [GENRES[i % 3]])] for i in ids]
    items = pa.table({
        "item_id": ids,
        "title": TITLES,
        "attributes": pa.array(genres, pa.map_(pa.string(), pa.list_(pa.string()))),
        "popularity": [20 - i for i in ids],
    })  # fmt: skip
    write_interactions(root, {number: str(number) for number in ids})
    with folder(root / layout.PREPARED) as partial:
        write_parquet(partial / "items.parquet", items)
        write_parquet(partial / "examples.parquet", pa.Table.from_pylist(examples))
        write_parquet(partial / "candidates.parquet", pa.Table.from_pylist(candidates))
        write_json(partial / "summary.json", {
            "source": "simulated", "noun": "films", "clock": True, "data_digest": digest,
            "manifests": {"uniform": {"warm": digest}},
        })  # fmt: skip


def write_interactions(root: Path, raw_ids: Mapping[int, str]) -> None:
    """data/interactions: what the log itself calls the films, by the number that stages count with; and ten users."""
    with folder(root / layout.INTERACTIONS) as partial:
        write_parquet(partial / "items.parquet", _raw("item_id", raw_ids))
        write_parquet(partial / "users.parquet", _raw("user_id", {user: f"U{user}" for user in range(1, USERS + 1)}))


def _raw(column: str, raw_ids: Mapping[int, str]) -> pa.Table:
    return pa.table({column: list(raw_ids), "raw_id": list(raw_ids.values())})


def _example(user: int, turn: int, days: int) -> dict[str, object]:
    target = 7 + (user + turn + days) % 6
    history = [1 + user % 6, 1 + (user + 2) % 6]
    cutoff = datetime(2020, 1, 1 + days)
    return {"example_id": f"{user}-{target}", "user_id": user, "split": "test", "view": "warm", "cutoff": cutoff,
            "history": history, "target": target}  # fmt: skip


def write_ranks(root: Path, ranks: Mapping[str, Sequence[int]], *, digest: str = "first", days: int = 0) -> None:
    """data/ranks and reports: each system's ranks, repeated to the number of cases, as if they had been measured."""
    examples = [_example(user, turn, days) for user in range(1, USERS + 1) for turn in range(2)]
    keys = [(str(e["example_id"]), int(str(e["user_id"]))) for e in examples]
    zeros = np.zeros(len(keys))
    systems = {
        name: in_case_order(
            name, CaseList(SAMPLED, "uniform", digest, keys), np.resize(np.array(values), len(keys)), zeros
        )
        for name, values in ranks.items()
    }
    about = {
        name: {"kind": "llm" if name.startswith("llm") else "id", "ranked_by": "logprob", "prior_weight": 0.0,
               "catalogue_ranked_by": "logprob", "artifacts": made_by(root, name),
               "validation": {m: float(metric_values(m, system.ranks).mean()) for m in METRICS}}
        for name, system in systems.items()
    }  # fmt: skip
    with folder(root / layout.RANKS) as partial:
        write_system_ranks(partial / "ranks.parquet", list(systems.values()))
        write_json(partial / "systems.json", about)
        write_json(partial / "cases.json", {"manifests": {"uniform": {"warm": digest}}})
    answer = "Should you use the language model? No."
    told = {"about": {"manifests": {"uniform": {"warm": digest}}, "answer": answer}, "figures": []}
    write_json(root / layout.REPORTS / "scorecard.json", told)
    popularity = {"mrr": {"value": 0.5}, "ndcg_at_10": {"value": 0.6}}
    write_json(root / layout.REPORTS / "metrics.json", {
        "systems": {"popularity": popularity}, "audit": {"verdict": "clean", "unbeaten": {}},
    })  # fmt: skip
    write_text(root / layout.REPORTS / "report.html", "<h1>Report</h1>")


def made_by(root: Path, system: str) -> dict[str, str]:
    """The digests of what lies in the project for a system, as evaluate writes them."""
    adapter, recommender = root / layout.ALIGN / system.removeprefix("llm-"), root / layout.BASELINES / system
    if adapter.is_dir():
        return language_model_artifacts(root / layout.BASE, adapter)
    return recommender_artifacts(recommender) if recommender.is_dir() else {}


def as_evaluated(root: Path) -> None:
    """Let systems.json name the artifacts that lie in the project now, as if the ranks that it has were theirs."""
    path = root / layout.RANKS / "systems.json"
    systems = read_json(path)
    write_json(path, {name: about | {"artifacts": made_by(root, name)} for name, about in systems.items()})


def write_fusion(params: Params, root: Path, weight: float = 0.5, new_weight: float | None = None) -> None:
    """Popularity as data/baselines keeps it, and a fusion of it with the S-DPO adapter, as evaluate would fit it.

    new_weight: the adapter's among items without train events, where popularity has none; None: as among all others.
    """
    catalogue = Items.read(root / layout.PREPARED)
    events = pa.table({"item_id": [item for item in catalogue.ids for _ in range(catalogue.popularity[item])]})
    with folder(root / layout.BASELINES / "popularity") as partial:
        Popularity.fit(catalogue, events).save(partial)
    digest = adapter_digest(root / layout.ALIGN / "sdpo")
    FittedFusion(
        parts={
            "popularity": Part(
                weight=1.0,
                digest=folder_digest(root / layout.BASELINES / "popularity"),
                new_weight=None if new_weight is None else 0.0,
            ),
            "llm-sdpo": Part(weight=weight, digest=digest, new_weight=new_weight),
        },
        language_model="llm-sdpo", manifest="uniform", manifest_digest="first", cases=8, recommender_cases=20,
        cold_events=None if new_weight is None else 1,
    ).write(root / layout.RANKS)  # fmt: skip


def write_project(params: Params, params_file: Path, root: Path) -> None:
    """All of the above: an S-DPO adapter that ranks every target first, against popularity that ranks it third."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(params_file, root / layout.PARAMS)
    write_base(params, root)
    write_adapter(params, root, root / layout.ALIGN / "sdpo", seed=2)
    write_prepared(root)
    write_ranks(root, {"popularity": [3], "llm-sdpo": [1]})
