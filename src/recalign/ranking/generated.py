"""The titles that a language model generates for the cases of a trial: freely, and held to a tree of titles."""

from collections.abc import Sequence

from recalign.common.progress import track
from recalign.evaluation.generation import FREE, FROM_CANDIDATES, FROM_CATALOGUE, Answer, Matching, judge
from recalign.llm.generation import generate_texts
from recalign.llm.scoring.branches import Branches
from recalign.llm.scoring.logprobs import why_not_shared
from recalign.llm.trie import Trie, generate_title
from recalign.ranking.language_model import LanguageModelRecommender
from recalign.ranking.trial import Trial


def answers(recommender: LanguageModelRecommender, trial: Trial, max_new_tokens: int, beams: int) -> list[Answer]:
    """Every case's answers, judged against its candidates: free ones under both matching rules, held ones by title.

    A case's own history is no answer when it is held to the catalogue. A model that cannot share a prompt gives free
    answers only. Greedy or by `beams`, so equal inputs give equal answers.
    """
    prompts = [
        recommender.builder.prompt(request.history, profile=request.profile, candidates=items)
        for request, items in zip(trial.requests, trial.candidates, strict=True)
    ]
    free = []
    batch = recommender.batch
    starts = range(0, len(prompts), batch)
    for start in track(starts, len(starts), f"generating with {recommender.name}", "batches"):
        model = recommender.language_model
        free += generate_texts(model, prompts[start : start + batch], max_new_tokens, stop="\n")
    found = [*_judged(recommender, trial, FREE, free, "title"), *_judged(recommender, trial, FREE, free, "substring")]
    if why_not_shared(recommender.language_model.model) is None:
        catalogue = [
            [item for item in recommender.catalogue.ids if item not in set(request.history)]
            for request in trial.requests
        ]
        for mode, allowed in ((FROM_CANDIDATES, trial.candidates), (FROM_CATALOGUE, catalogue)):
            held = _held(recommender, prompts, allowed, beams)
            found += _judged(recommender, trial, mode, held, "title")
    return found


def _held(
    recommender: LanguageModelRecommender, prompts: list[list[int]], allowed: Sequence[Sequence[int]], beams: int
) -> list[str]:
    titles = []
    for prompt, items in zip(prompts, allowed, strict=True):
        trie = Trie({item: recommender.builder.response(item) for item in items})
        branches = Branches(recommender.language_model.model, [prompt])
        titles.append(_shown(recommender, generate_title(branches, trie, beams)))
    return titles


def _judged(
    recommender: LanguageModelRecommender, trial: Trial, mode: str, texts: Sequence[str], matching: Matching
) -> list[Answer]:
    found = []
    for case, text in zip(trial.cases, texts, strict=True):
        candidates = [_shown(recommender, item) for item in case.candidates]
        history = [_shown(recommender, item) for item in case.example.history]
        outcome, place = judge(text, candidates, history, matching)
        hit = place is not None and place == case.target_index
        example, user = case.example.example_id, case.example.user_id
        found.append(Answer(recommender.name, mode, matching, example, user, text, outcome, hit))
    return found


def _shown(recommender: LanguageModelRecommender, item: int) -> str:
    """A title as prompts show it (made safe, and cut), which is how a model that has learned them writes it."""
    return str(recommender.language_model.tokenizer.decode(recommender.builder.response(item))).strip()
