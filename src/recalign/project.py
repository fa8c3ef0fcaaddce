"""Where each stage's output lies, relative to the project's root (dvc.yaml names the same paths; a test compares).

And the files that recalign is shipped with beside its modules: params.yaml, dvc.yaml, prefect.yaml and flows/.
"""

import site
import sys
from dataclasses import dataclass, replace
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
REFERENCE = Path("data/reference")  # reference: reference.parquet, log-probs under the adapter of align.start
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
    """A project by its root: every path that stages read and write.

    elsewhere: folders that lie in other places than under the root, as `moved` says.
    """

    root: Path = Path()
    elsewhere: tuple[tuple[str, Path], ...] = ()

    def moved(self, **folders: Path) -> "Project":
        """This project with some folders elsewhere, by the names of their properties: `project.moved(sft=tried)`.

        Raises TypeError for a name that is none.
        """
        unknown = [name for name in folders if not isinstance(getattr(Project, name, None), property)]
        if unknown:
            raise TypeError(f"a project has no folder {unknown[0]}")
        return replace(self, elsewhere=(*self.elsewhere, *folders.items()))

    def _place(self, name: str, usual: Path) -> Path:
        return dict(self.elsewhere).get(name, self.root / usual)

    @property
    def raw(self) -> Path:
        """The raw files, a folder a source."""
        return self._place("raw", RAW)

    @property
    def interactions(self) -> Path:
        """What ingest wrote."""
        return self._place("interactions", INTERACTIONS)

    @property
    def validated(self) -> Path:
        """The clean tables."""
        return self._place("validated", VALIDATED)

    @property
    def prepared(self) -> Path:
        """Events, items, examples, candidates."""
        return self._place("prepared", PREPARED)

    @property
    def baselines(self) -> Path:
        """A folder a fitted ID recommender."""
        return self._place("baselines", BASELINES)

    @property
    def base(self) -> Path:
        """The base model."""
        return self._place("base", BASE)

    @property
    def profiles(self) -> Path:
        """Inferred preferences."""
        return self._place("profiles", PROFILES)

    @property
    def pairs(self) -> Path:
        """Preference pairs."""
        return self._place("pairs", PAIRS)

    @property
    def sft(self) -> Path:
        """The adapter of supervised training."""
        return self._place("sft", SFT)

    @property
    def reference(self) -> Path:
        """Log-probs of the pairs under the SFT adapter."""
        return self._place("reference", REFERENCE)

    @property
    def align(self) -> Path:
        """An adapter a folder, by objective."""
        return self._place("align", ALIGN)

    @property
    def hybrid(self) -> Path:
        """Adapters whose prompts show a recommender's vectors, by name."""
        return self._place("hybrid", HYBRID)

    def start(self, name: str) -> Path:
        """The adapter that align.start names: "sft" or "hybrid/llara-<teacher>"."""
        return self.sft if name == "sft" else self.hybrid / Path(name).name

    @property
    def other(self) -> Path:
        """Adapters of other runs, by name."""
        return self._place("other", OTHER)

    @property
    def scores(self) -> Path:
        """A folder a system that was ranked."""
        return self._place("scores", SCORES)

    @property
    def ranks(self) -> Path:
        """The ranks of all systems and what explains them."""
        return self._place("ranks", RANKS)

    @property
    def reports(self) -> Path:
        """Metrics, plots and pages."""
        return self._place("reports", REPORTS)

    @property
    def dpo4rec(self) -> Path:
        """What the loop of texts about tastes wrote."""
        return self._place("dpo4rec", DPO4REC)

    @property
    def cache(self) -> Path:
        """Partial work that survives a kill."""
        return self._place("cache", CACHE)

    @property
    def logprobs(self) -> Path:
        """Log-probs kept between runs, by the content of what was scored."""
        return self.cache / "logprobs"

    @property
    def costs(self) -> Path:
        """Seconds that stages took, by the content of what they left."""
        return self.cache / "costs"


SHARE = Path("share") / "recalign"


def shipped(name: str | Path) -> Path:
    """A file or folder of the checkout that recalign runs from or, where it is installed, of the installation.

    Raises RecalignError where neither has it.
    """
    package = Path(__file__).parent
    installed = (Path(sys.prefix), Path(site.getuserbase()), package.parent)  # pip install, --user, --target
    places = [package.parents[1], *(place / SHARE for place in installed)]
    found = next((place / name for place in places if (place / name).exists()), None)
    if found is None:
        raise RecalignError(f"recalign is installed without its {name}; install it again, from its wheel or a checkout")
    return found
