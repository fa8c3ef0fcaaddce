"""Where each stage's output lies, relative to the project's root (dvc.yaml names the same paths; a test compares).

And the files that recalign is shipped with beside its modules: params.yaml, dvc.yaml, prefect.yaml and flows/.
"""

import site
import sys
from dataclasses import dataclass
from pathlib import Path

from recalign.common.errors import RecalignError

PARAMS = Path("params.yaml")
RAW = Path("data/raw")  # /<source>: tracked by DVC, one folder a source
INTERACTIONS = Path("data/interactions")  # ingest: docs/contracts.md names the files of each folder
VALIDATED = Path("data/validated")  # validate: interactions, items, quarantine, summary.json
PREPARED = Path("data/prepared")  # prepare: events, items, examples, candidates, summary.json
BASELINES = Path("data/baselines")  # baselines: one folder a fitted ID recommender
BASE = Path("data/models/base")  # base: Hugging Face folder and base.json (id, revision, sha256)
PROFILES = Path("data/profiles")  # profiles: profiles.parquet
PAIRS = Path("data/pairs")  # pairs: pairs.parquet
SFT = Path("data/models/sft")  # sft: PEFT adapter, curve.csv, training.json
REFERENCE = Path("data/reference")  # reference: reference.parquet, log-probs under the SFT adapter
ALIGN = Path("data/models/align")  # align@<objective>: PEFT adapter, curve.csv, training.json
HYBRID = Path("data/models/hybrid")  # llara@<teacher>: /llara-<teacher>, as sft, with the modality adapter and vectors
OTHER = Path("data/models/other")  # /<name>: an adapter of another run, brought by the user and tracked by DVC
DPO4REC = Path("data/dpo4rec")  # dpo4rec, in no default run: texts, pairs, reranker, adapters, report
SCORES = Path("data/scores")  # rank: one folder a system, with its ranks, its scores and system.json
RANKS = Path("data/ranks")  # fuse: ranks.parquet of all systems, systems.json, cases.json, fusion.json
REPORTS = Path("reports")  # report: metrics.json, plots/, report.html; validate: validation.html
REGISTRY = Path("mlflow.db")  # the MLflow registry, where no variable names a server
REGISTRY_SCHEME = "models:/"  # begins the address of a registered version, as MLflow writes it
CACHE = Path("data/cache")  # content-addressed partial work that survives a kill; safe to delete


@dataclass(frozen=True)
class Project:
    """A project by its root: every path that stages read and write."""

    root: Path = Path()

    @property
    def interactions(self) -> Path:
        """What ingest wrote."""
        return self.root / INTERACTIONS

    @property
    def validated(self) -> Path:
        """The clean tables."""
        return self.root / VALIDATED

    @property
    def prepared(self) -> Path:
        """Events, items, examples, candidates."""
        return self.root / PREPARED

    @property
    def baselines(self) -> Path:
        """A folder a fitted ID recommender."""
        return self.root / BASELINES

    @property
    def base(self) -> Path:
        """The base model."""
        return self.root / BASE

    @property
    def profiles(self) -> Path:
        """Inferred preferences."""
        return self.root / PROFILES

    @property
    def pairs(self) -> Path:
        """Preference pairs."""
        return self.root / PAIRS

    @property
    def sft(self) -> Path:
        """The adapter of supervised training."""
        return self.root / SFT

    @property
    def align(self) -> Path:
        """An adapter a folder, by objective."""
        return self.root / ALIGN

    @property
    def hybrid(self) -> Path:
        """Adapters whose prompts show a recommender's vectors, by name."""
        return self.root / HYBRID

    @property
    def other(self) -> Path:
        """Adapters of other runs, by name."""
        return self.root / OTHER

    @property
    def scores(self) -> Path:
        """A folder a system that was ranked."""
        return self.root / SCORES

    @property
    def ranks(self) -> Path:
        """The ranks of all systems and what explains them."""
        return self.root / RANKS

    @property
    def reports(self) -> Path:
        """Metrics, plots and pages."""
        return self.root / REPORTS

    @property
    def logprobs(self) -> Path:
        """Log-probs kept between runs, by the content of what was scored."""
        return self.root / CACHE / "logprobs"

    @property
    def costs(self) -> Path:
        """Seconds that stages took, by the content of what they left."""
        return self.root / CACHE / "costs"


SHARE = Path("share") / "recalign"


def shipped(name: str | Path) -> Path:
    """A file or folder of the checkout that recalign runs from or, where it is installed, of the installation.

    Raises RecalignError where neither has it.
    """
    package = Path(__file__).parents[1]
    installed = (Path(sys.prefix), Path(site.getuserbase()), package.parent)  # pip install, --user, --target
    places = [package.parents[1], *(place / SHARE for place in installed)]
    found = next((place / name for place in places if (place / name).exists()), None)
    if found is None:
        raise RecalignError(f"recalign is installed without its {name}; install it again, from its wheel or a checkout")
    return found
