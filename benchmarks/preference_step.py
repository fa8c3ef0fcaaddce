"""One S-DPO step: the shared prompt and the stored reference against the scheme that was published.

    python benchmarks/preference_step.py --model data/models/base --lastfm data/raw/lastfm --json preference_step.json

A step is forward and backward of the S-DPO loss (arXiv 2406.09215) for one prompt with 1 chosen and K rejected
responses; only LoRA has gradients (rank 16 on every linear layer of all blocks). Published, written here after the
paper's released trainer: 1+K whole sequences padded to one length, logits of every position and the whole vocabulary in
fp32, and in each step a second forward pass by a reference model of its own. CPU seconds of one thread, variants
alternating in one process, each repetition on another example. Peak memory is that of a process of its own, over what
it held before, with an allocator that hands back what is freed (otherwise its gaps are measured too).

Without --lastfm the prompts are invented ones about films.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from alternating import alternate, peak_above_resident, ratio, shown
from lastfm_pairs import examples
from torch import Tensor
from torch.nn.functional import logsigmoid

from recalign.common.origin import machine
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.objectives.losses import PreferenceBatch
from recalign.objectives.objective import PRESETS, build_objective
from recalign.params.load import load_params
from recalign.params.lora import LoraParams
from recalign.training.examples import PreferenceExample
from recalign.training.reference import Store, compute, reference_sums

BETA = 1.0  # the paper's
IGNORED = -100
GOALS = {1: 3.3, 3: 5.8, 8: 12.5, 15: 19.0}
LORA = LoraParams(rank=16, alpha=32, dropout=0.0, targets="all-linear", layers=None)


def load(model: Path, compute_type: str, *, trainable: bool) -> LanguageModel:
    """The base with LoRA whose B is not zero: at zero, half of the gradients would be."""
    base = load_params().base.model_copy(update={"compute": compute_type, "quantisation": "none"})
    lm = load_language_model(model, base, new_adapter=LORA, trainable=trainable, seed=1, threads=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.01, generator=generator)
    return lm


# ---- the published scheme -------------------------------------------------------------------------------------------


def padded_sequences(example: PreferenceExample) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention mask, labels [1+K, L]: prompt and response, padded on the right; only responses have labels."""
    rows = [example.prompt + response for response in example.responses]
    longest, start = max(map(len, rows)), len(example.prompt)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), IGNORED)
    attended = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row)
        attended[k, : len(row)] = 1
        labels[k, start : len(row)] = torch.tensor(row[start:])
    return ids, attended, labels


def whole_sequence_logprobs(model: torch.nn.Module, example: PreferenceExample) -> Tensor:
    """[1+K] summed log-probs of the responses from logits at every position."""
    ids, attended, labels = padded_sequences(example)
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits.to(torch.float32)[:, :-1]
    labels = labels[:, 1:].clone()
    asked = labels != IGNORED
    labels[~asked] = 0
    tokens = torch.gather(logits.log_softmax(-1), dim=2, index=labels.unsqueeze(2)).squeeze(2)
    return (tokens * asked).sum(-1)


def published_step(policy: LanguageModel, reference: LanguageModel, example: PreferenceExample) -> Tensor:
    """Gradients of −log σ(−log Σ_k exp β(h_k − h_chosen)), h = log π − log π_ref, by the published scheme."""
    policy.model.zero_grad()
    ours = whole_sequence_logprobs(policy.model, example)
    with torch.no_grad():
        theirs = whole_sequence_logprobs(reference.model, example)
    rewards = BETA * (ours - theirs)
    loss = -logsigmoid(-torch.logsumexp(rewards[1:] - rewards[0], dim=0))
    loss.backward()
    return loss.detach()


# ---- ours -----------------------------------------------------------------------------------------------------------


def stored(lm: LanguageModel, given: list[PreferenceExample]) -> dict[str, list[float]]:
    """The reference log-probs of the examples, by one pass over them."""
    store: Store = {}
    for part in compute(lm.model, lm.digest, given, micro_tokens=1):  # one prompt at a time
        store |= part
    return reference_sums(store, lm.digest, given)


def shared_step(lm: LanguageModel, references: dict[str, list[float]] | None, example: PreferenceExample) -> Tensor:
    """Gradients of the same loss with the prompt encoded once; the reference read, or scored anew where None."""
    lm.model.zero_grad()
    if references is None:
        with torch.no_grad():
            known = response_logprobs(lm.model, [example.prompt], [example.responses]).sums
    else:
        known = torch.tensor([references[example.example_id]])
    scored = response_logprobs(lm.model, [example.prompt], [example.responses])
    batch = PreferenceBatch(scored.sums, known.to(scored.sums), scored.lengths, scored.mask)
    loss = build_objective("sdpo", beta=BETA)(batch).loss
    loss.backward()
    return loss.detach()


def gradient(lm: LanguageModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]).double()


# ---- measures -------------------------------------------------------------------------------------------------------


def measure_step(arguments: argparse.Namespace, negatives: int) -> dict[str, Any]:
    """Time of both schemes in fp32 at one K, and how far their gradients are apart; at K = 3 also ours in bf16."""
    policy, reference = (load(arguments.model, "fp32", trainable=t) for t in (True, False))
    given = list(islice(examples(arguments.lastfm, policy.tokenizer, negatives), arguments.repeats + 1))
    references = stored(reference, given)
    apart: list[float] = []
    variants: dict[str, Callable[[PreferenceExample], object]] = {
        "published": lambda example: published_step(policy, reference, example),
        "shared": lambda example: shared_step(policy, references, example),
    }
    if negatives == 3:
        half = load(arguments.model, "bf16", trainable=True)
        known = stored(half, given)
        variants["shared, live reference"] = lambda example: shared_step(policy, None, example)
        variants["shared, bf16"] = lambda example: shared_step(half, known, example)
    seconds = alternate(variants, given)
    for example in given[:3]:
        published_step(policy, reference, example)
        expected = gradient(policy)
        shared_step(policy, references, example)
        apart.append(float((gradient(policy) - expected).norm() / expected.norm()))
    found = {name: ratio(seconds, "published", name) for name in variants if name != "published"}
    prompts, responses = [len(e.prompt) for e in given], [len(r) for e in given for r in e.responses]
    for name, measured in found.items():
        print(f"K = {negatives}, {name}: {shown(measured)}", flush=True)
    print(f"K = {negatives}: gradients at most {max(apart):.1e} apart (relative L2)", flush=True)
    return {
        "negatives": negatives, "goal": GOALS.get(negatives), "gradient_error": max(apart), "ratios": found,
        "prompt_tokens": prompts, "mean_response_tokens": sum(responses) / len(responses),
    }  # fmt: skip


def measure_peak(arguments: argparse.Namespace) -> None:
    """Print the MiB that one step of one scheme takes over the resident process (both schemes hold the same models)."""
    scheme, negatives = arguments.peak.split(":")
    policy, reference = (load(arguments.model, "fp32", trainable=t) for t in (True, False))
    example = next(examples(arguments.lastfm, policy.tokenizer, int(negatives)))
    references = stored(reference, [example])
    first = PreferenceExample(example.example_id, example.prompt[:4], [r[:2] for r in example.responses])
    shared_step(policy, references, first)  # libraries and the adapter's gradients are in memory before
    gc.collect()
    if scheme == "published":
        print(peak_above_resident(lambda: published_step(policy, reference, example)))
    else:
        print(peak_above_resident(lambda: shared_step(policy, references, example)))


def peaks(arguments: argparse.Namespace, negatives: int) -> dict[str, Any]:
    """Peak memory of a step of both schemes, each in a process of its own."""
    mib = {}
    for scheme in ("published", "shared"):
        command = [sys.executable, __file__, "--model", str(arguments.model), "--peak", f"{scheme}:{negatives}"]
        command += ["--lastfm", str(arguments.lastfm)] if arguments.lastfm else []
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc's: blocks go back when they are freed
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        mib[scheme] = float(done.stdout.split()[-1])
    times = mib["published"] / mib["shared"]
    print(f"peak memory, K = {negatives}: {times:.1f}x less ({mib['published']:.0f} MiB, {mib['shared']:.0f} MiB)")
    return {"negatives": negatives, "mib": mib, "ratio": times}


def measure_sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """All objectives × three β over a few examples: forward passes of the reference, by one store and recomputed."""
    lm = load(arguments.model, "fp32", trainable=False)
    given = list(islice(examples(arguments.lastfm, lm.tokenizer, 3), 4))
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    lm.model.register_forward_hook(count)
    references, runs = stored(lm, given), 0
    for name in PRESETS:
        for beta in (0.1, 0.3, 1.0):
            objective = build_objective(name, beta=beta)
            for example in given:
                known = torch.tensor([references[example.example_id]])
                lengths = torch.tensor([[len(response) for response in example.responses]])
                objective(PreferenceBatch(known, known, lengths, lengths > 0))
            runs += 1
    live = runs * len(given)
    print(f"{len(PRESETS)} objectives x 3 beta, {len(given)} examples: {passes} reference forward passes, not {live}")
    return {"objectives": len(PRESETS), "runs": runs, "examples": len(given), "reference_passes": passes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("data/models/base"), help="folder of the stage `base`")
    parser.add_argument("--lastfm", type=Path, help="folder with items.csv and cases.jsonl")
    parser.add_argument("--repeats", type=int, default=5, help="measured repetitions; one more warms up")
    parser.add_argument("--negatives", type=int, nargs="*", default=list(GOALS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # scheme:K, in a process of its own
    arguments = parser.parse_args()
    if arguments.peak:
        measure_peak(arguments)
        return
    found = {
        "machine": machine(),
        "load_before": os.getloadavg(),
        "steps": [measure_step(arguments, negatives) for negatives in arguments.negatives],
        "peaks": [peaks(arguments, negatives) for negatives in (3, 15)],
        "sweep": measure_sweep(arguments),
        "load_after": os.getloadavg(),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
