"""Command export: the preference pairs as other trainers read them."""

import json
import logging
from pathlib import Path

from recalign.common import columns as c
from recalign.common.artifacts import write_text
from recalign.common.errors import RecalignError
from recalign.llm.model.files import IDENTITY
from recalign.params.load import Params
from recalign.project import Project
from recalign.training.examples import PreferenceExample, read_preference_examples, text_prompts

log = logging.getLogger(__name__)


def export(params: Params, out: Path, split: str = c.TRAIN, project: Project = Project()) -> None:
    """Write the pairs of `split` to `out` for TRL: JSON lines with prompt, chosen and rejected, one a rejected item.

    The texts are those of the very token ids that recalign trains on, without what the tokenizer puts first by itself.
    Raises RecalignError where pairs or base are missing, or `out` is a folder.
    """
    if out.is_dir():
        raise RecalignError(f"--trl is {out}, a folder; give the name of a file, such as {out / 'pairs.jsonl'}")
    if not (project.base / IDENTITY).is_file():
        raise RecalignError(
            f"{project.base / IDENTITY} is missing; run 'dvc repro base', whose tokenizer cuts the titles"
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(project.base, trust_remote_code=False, local_files_only=True)
    examples = read_preference_examples(
        params, project.prepared, project.pairs, text_prompts(params, project.prepared, tokenizer)
    )[split]
    skipped = set(tokenizer.all_special_ids)

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode([i for i in ids if i not in skipped], clean_up_tokenization_spaces=False))

    def lines(example: PreferenceExample) -> list[str]:
        prompt = text(example.prompt)
        chosen, *rejected = (text(response) for response in example.responses)
        rows = [{"prompt": prompt, "chosen": chosen, "rejected": other} for other in rejected]
        return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]

    written = [line for example in examples for line in lines(example)]
    write_text(out, "".join(written))
    log.info("%s: %d lines of %d %s pairs", out, len(written), len(examples), split)
