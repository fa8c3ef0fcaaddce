"""One step of preference training against TRL's DPOTrainer, on the same pairs, with the same LoRA.

    pip install 'recalign[bench]'
    python benchmarks/against_trl.py --model data/models/base --lastfm data/raw/lastfm --json against_trl.json

A step is two prompts: forward, backward, clipping and AdamW, fp32, LoRA of rank 16 on every linear layer. TRL gets the
same token ids, one pair a rejected response; ours shares the prompt among its responses and minimises the same loss
(DPO on each pair, averaged), so that the gradients can be compared. TRL's reference runs in each step or is computed
beforehand; ours is read from the store. No gradient checkpointing. CPU seconds of one thread, alternating in one
process. On a CPU TRL's fused head projects every position; on a GPU only the responses', so this lead is a CPU's.
"""

import argparse
import json
import logging
import os
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from alternating import alternate, ratio, shown
from datasets import Dataset
from lastfm_pairs import examples
from preference_step import load, stored
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl import __version__ as trl_version

from recalign.common.origin import machine
from recalign.llm.model.base import LanguageModel
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.objectives.losses import PreferenceBatch
from recalign.objectives.objective import build_objective
from recalign.training.examples import PreferenceExample

BETA, RATE, CLIP, PROMPTS = 0.1, 1e-6, 1.0, 2
GOALS = {1: (4.2, 3.2), 3: (14.0, 10.0)}
Batch = tuple[PreferenceExample, ...]


class Tokenised(DPOTrainer):
    """DPOTrainer on token ids that are given: it would tokenise text, and add its own terminator."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


class Trl:
    """TRL's trainer, driven step by step over our batches."""

    def __init__(self, lm: LanguageModel, given: list[PreferenceExample], negatives: int, *, precompute: bool) -> None:
        rows = [
            {"prompt_ids": e.prompt, "chosen_ids": e.responses[0], "rejected_ids": rejected}
            for e in given
            for rejected in e.responses[1:]
        ]
        self._size = PROMPTS * negatives
        with tempfile.TemporaryDirectory() as place:
            config = DPOConfig(
                place, use_cpu=True, per_device_train_batch_size=self._size, beta=BETA, learning_rate=RATE,
                max_grad_norm=CLIP, bf16=False, gradient_checkpointing=False, max_length=None, report_to=[],
                precompute_ref_log_probs=precompute, disable_tqdm=True, dataloader_pin_memory=False,
            )  # fmt: skip
            self.trainer = Tokenised(
                lm.model, args=config, train_dataset=Dataset.from_list(rows), processing_class=lm.tokenizer
            )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1  # what `train` would set
        self._rows = {e.example_id: range(i * negatives, (i + 1) * negatives) for i, e in enumerate(given)}

    def batch(self, given: Batch) -> dict[str, Any]:
        """The pairs of some prompts as TRL's own collator lays them out."""
        rows = self.trainer.train_dataset
        return self.trainer.data_collator([rows[i] for example in given for i in self._rows[example.example_id]])

    def backward(self, given: Batch) -> Tensor:
        """Loss; gradients are left on the model."""
        model = self.trainer.model
        model.train()
        return self.trainer.training_step(model, self.batch(given))

    def step(self, given: Batch) -> None:
        """One step of the optimiser."""
        self.backward(given)
        _update(self.trainer.model, self.trainer.optimizer)


class Ours:
    """The same step on our scorer and the stored reference."""

    def __init__(self, lm: LanguageModel, given: list[PreferenceExample]) -> None:
        self.lm = lm
        self._references = stored(lm, given)
        self._optimiser = torch.optim.AdamW([p for p in lm.model.parameters() if p.requires_grad], lr=RATE)
        self._objective = build_objective("dpo_pairs", beta=BETA)

    def backward(self, given: Batch) -> Tensor:
        """Loss; gradients are left on the model."""
        scored = response_logprobs(self.lm.model, [e.prompt for e in given], [e.responses for e in given])
        known = torch.tensor([self._references[example.example_id] for example in given])
        loss = self._objective(PreferenceBatch(scored.sums, known, scored.lengths, scored.mask)).loss
        loss.backward()
        return loss.detach()

    def step(self, given: Batch) -> None:
        """One step of the optimiser."""
        self.backward(given)
        _update(self.lm.model, self._optimiser)


def _update(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)
    optimiser.step()
    optimiser.zero_grad()


def measure(arguments: argparse.Namespace, negatives: int) -> dict[str, Any]:
    """Both ways of TRL against ours at K pairs a prompt."""
    models = {name: load(arguments.model, "fp32", trainable=True) for name in ("live", "precomputed", "ours")}
    tokenizer = models["ours"].tokenizer
    given = list(islice(examples(arguments.lastfm, tokenizer, negatives), PROMPTS * (arguments.repeats + 1)))
    live, ready = (Trl(models[n], given, negatives, precompute=n == "precomputed") for n in ("live", "precomputed"))
    ours = Ours(models["ours"], given)
    batches = [tuple(given[i : i + PROMPTS]) for i in range(0, len(given), PROMPTS)]
    losses = float(live.backward(batches[0])), float(ours.backward(batches[0]))
    expected, found = (_gradients(models[name]) for name in ("live", "ours"))
    apart = float((found - expected).norm() / expected.norm())
    for name in ("live", "ours"):
        models[name].model.zero_grad()
    seconds = alternate({"trl, live": live.step, "trl, precomputed": ready.step, "ours": ours.step}, batches)
    ratios = [ratio(seconds, name, "ours") for name in ("trl, live", "trl, precomputed")]
    for measured, goal in zip(ratios, GOALS[negatives], strict=True):
        print(f"{negatives} pairs a prompt, {measured['slow']}: {shown(measured)}, goal {goal}", flush=True)
    print(f"{negatives} pairs a prompt: losses {losses}, gradients {apart:.1e} apart (relative L2)", flush=True)
    return {"pairs": negatives, "goals": GOALS[negatives], "ratios": ratios, "losses": losses, "gradient_error": apart}


def _gradients(lm: LanguageModel) -> Tensor:
    """Of the policy's adapter alone, in one order; TRL adds a frozen copy of it as the reference."""
    named = {n: p for n, p in lm.model.named_parameters() if p.grad is not None and ".default." in n}
    return torch.cat([named[name].grad.flatten() for name in sorted(named)]).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("data/models/base"), help="folder of the stage `base`")
    parser.add_argument("--lastfm", type=Path, help="folder with items.csv and cases.jsonl; else invented prompts")
    parser.add_argument("--repeats", type=int, default=4, help="measured repetitions; one more warms up")
    parser.add_argument("--pairs", type=int, nargs="*", default=list(GOALS), choices=list(GOALS), help="pairs a prompt")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("trl").setLevel(logging.ERROR)
    found = {
        "machine": machine(),
        "trl": trl_version,
        "load_before": os.getloadavg(),
        "steps": [measure(arguments, negatives) for negatives in arguments.pairs],
        "load_after": os.getloadavg(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
