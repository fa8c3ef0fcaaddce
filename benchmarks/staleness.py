"""Which stages a one-line comment makes stale, before and after dependencies were generated from the imports.

    python benchmarks/staleness.py --before c64c241

Reads dvc.yaml of that commit and of the working tree. A stage counts where it depends on the commented file, or on what
such a stage writes (which `dvc repro` then only checks where the bytes come out equal). Prints a Markdown table.
"""

import argparse
import subprocess
from pathlib import Path

from recalign.pipeline import DVC_FILE, read_stages, stale_stages

MODELS = ("sft", "reference", "align")
# a comment in: the file before, the file now
COMMENTS = (
    ("src/recalign/params.py", "src/recalign/params/schedule.py"),
    ("src/recalign/params.py", "src/recalign/params/evaluate.py"),
    ("src/recalign/params.py", "src/recalign/params/align.py"),
    ("src/recalign/evaluation/significance.py", "src/recalign/evaluation/significance.py"),
    ("src/recalign/evaluation/ranking.py", "src/recalign/evaluation/metrics.py"),
    ("src/recalign/evaluation/plots.py", "src/recalign/report/plots.py"),
    ("src/recalign/llm/downloads.py", "src/recalign/llm/downloads.py"),
    ("src/recalign/llm/trie.py", "src/recalign/llm/trie.py"),
    ("src/recalign/errors.py", "src/recalign/common/errors.py"),
    ("src/recalign/objectives/losses.py", "src/recalign/objectives/losses.py"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="COMMIT", help="whose dvc.yaml is compared")
    commit = parser.parse_args().before
    show = ["git", "show", f"{commit}:{DVC_FILE}"]
    old = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    before, after = read_stages(old), read_stages(DVC_FILE.read_text(encoding="utf-8"))
    print(f"| a comment in | before ({len(before)} stages) | now ({len(after)}) | models trained again, before → now |")
    print("|---|---:|---:|---|")
    for then, now in COMMENTS:
        if not Path(now).is_file():
            raise SystemExit(f"{now} is not there: change COMMENTS")
        stale = [stale_stages([then], before), stale_stages([now], after)]
        models = [", ".join(f"`{name}`" for name in MODELS if name in own) or "none" for own in stale]
        print(f"| `{now.removeprefix('src/recalign/')}` | {len(stale[0])} | {len(stale[1])} | {' → '.join(models)} |")


if __name__ == "__main__":
    main()
