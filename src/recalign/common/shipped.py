"""The files that recalign is shipped with beside its modules: params.yaml, dvc.yaml, prefect.yaml and flows/."""

import site
import sys
from pathlib import Path

from recalign.common.errors import RecalignError

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
