"""The pages that people read, their code blocks, and the commands in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))


def blocks(page: Path, language: str = "") -> list[str]:
    """The code blocks of one language, in order; "" for those that a shell runs."""
    text = page.read_text(encoding="utf-8")
    return [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.M) if kind == language]


def command_lines(block: str) -> list[str]:
    """The commands of a shell block, without comments; `a && b` are two."""
    lines = (re.sub(r"\s+# .*", "", line).strip() for line in block.splitlines())
    return [part.strip() for line in lines if line for part in line.split(" && ")]
