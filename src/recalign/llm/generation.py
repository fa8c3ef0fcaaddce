"""Greedy generation of short texts in batches, and of a title that the tree of titles holds."""

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from recalign.llm.base import LanguageModel
from recalign.llm.branches import PROMPT_END, Branches
from recalign.llm.trie import ROOT, Trie, next_logprobs

WHOLE = -2  # in place of a place: the title has ended


class _StopText(StoppingCriteria):
    """Ends each text of a batch once `stop` stands in what was generated after `start` places."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, stop: str) -> None:
        self._tokenizer, self._start, self._stop = tokenizer, start, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._start :])
        return torch.tensor([self._stop in text for text in texts], device=input_ids.device)


def generate_texts(
    language_model: LanguageModel, prompts: list[list[int]], max_new_tokens: int, stop: str = "\n\n"
) -> list[str]:
    """The greedy continuation of each prompt, up to `stop` or the end token, without blanks around it.

    prompts: B lists of token ids, one batch; the caller chooses B. Greedy, so equal inputs give equal texts; raises
    ValueError for an empty prompt.
    """
    if not prompts or not all(prompts):
        raise ValueError("a prompt is empty, or there is none: generation continues at least one token")
    model, tokenizer, device = language_model.model, language_model.tokenizer, language_model.device
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # padded on the left, so that every row's next token follows its prompt directly
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    training = model.training
    model.eval()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=seen,
            generation_config=GenerationConfig(  # not the model's own, which may sample
                do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=tokenizer.eos_token_id
            ),
            stopping_criteria=StoppingCriteriaList([_StopText(tokenizer, longest, stop)]),
        )
    model.train(training)
    texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return [text.split(stop)[0].strip() for text in texts]


def generate_title(branches: Branches, trie: Trie, beams: int = 1) -> int:
    """The item whose title a beam search over the tree ends with: always one of the tree's, the smallest id of twins.

    Each step keeps the `beams` beginnings and whole titles with the highest summed log-prob; 1 is greedy. As many beams
    as titles find the best one, as `best_items` does with less work. `branches` must not have grown, and has not when
    this returns. Raises ValueError for less than one beam.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}; 1 or more is allowed")
    whole: list[tuple[float, int, int]] = []  # (−log-prob, node, WHOLE)
    begun: list[tuple[float, int, int]] = [(0.0, ROOT, PROMPT_END)]  # (−log-prob, node, its place)
    rows, grown = branches.first[None], 0
    while begun:
        longer = []
        for (cost, node, place), gains in zip(begun, next_logprobs(trie, [n for _, n, _ in begun], rows), strict=True):
            for child, gain in zip(trie.children[node], gains, strict=True):
                if trie.holds[child]:
                    whole.append((cost - gain, child, WHOLE))
                if trie.children[child]:
                    longer.append((cost - gain, child, place))
        kept = sorted([*whole, *longer])[:beams]
        whole = [entry for entry in kept if entry[2] == WHOLE]
        taken = [entry for entry in kept if entry[2] != WHOLE]
        if taken:
            rows = branches.grow([trie.token[node] for _, node, _ in taken], [place for *_, place in taken])
        begun = [(cost, node, grown + number) for number, (cost, node, _) in enumerate(taken)]
        grown += len(taken)
    branches.cut()
    return trie.items[min(trie.holds[min(whole)[1]])]
