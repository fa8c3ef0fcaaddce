"""Greedy generation of short texts, in batches."""

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from recalign.llm.base import LanguageModel


class _StopText(StoppingCriteria):
    """Ends each text of a batch once `stop` stands in what was generated after `start` places."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, stop: str) -> None:
        self._tokenizer, self._start, self._stop = tokenizer, start, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._start :])
        return torch.tensor([self._stop in text for text in texts], device=input_ids.device)


def generate_texts(
    language_model: LanguageModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop: str = "\n\n",
    noise: LogitsProcessor | None = None,
) -> list[str]:
    """The greedy continuation of each prompt, up to `stop` or the end token, without blanks around it.

    prompts: B lists of token ids, one batch; the caller chooses B. Greedy, so equal inputs give equal texts, but for
    what `noise` adds to the logits. Raises ValueError for an empty prompt.
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
            logits_processor=LogitsProcessorList([noise] if noise else []),
            stopping_criteria=StoppingCriteriaList([_StopText(tokenizer, longest, stop)]),
        )
    model.train(training)
    texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return [text.split(stop)[0].strip() for text in texts]
