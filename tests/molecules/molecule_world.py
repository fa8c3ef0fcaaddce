"""Small files of pairs, and params of the molecules project that read them."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from moltc.params import Params, parse_params

PROJECT = Path(__file__).parents[2] / "examples" / "molecules"
TYPES = "type,sentence,symmetric\nsalt,Both form a salt.,1\nmix,Both mix.,1\nover,{drug_1} lies above {drug_2}.,0\n"


def params(**changes: Any) -> Params:
    """The project's params with the tiny model in fp32; `data__kind="number"` sets data.kind."""
    tree = YAML(typ="safe").load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    tree["threads"], tree["base"]["model"], tree["base"]["compute"] = 1, "tiny-random", "fp32"
    for key, value in changes.items():
        *sections, name = key.split("__")
        part = tree
        for section in sections:
            part = part[section]
        part[name] = value
    return parse_params(tree)


def own_files(root: Path, rows: str, header: str = "smiles_1,smiles_2,type", **changes: Any) -> Params:
    """Write pairs.csv and types.csv into `root`, and the params that read them."""
    (root / "pairs.csv").write_text(f"{header}\n{rows}", encoding="utf-8")
    (root / "types.csv").write_text(TYPES, encoding="utf-8")
    return params(**{"data__pairs": "pairs.csv", "data__types": "types.csv", "data__best": None} | changes)
