"""Titles as a tree of tokens: one pass that scores them all, the exact best of them, and generation held to them.

A title's log-prob only falls with each token, so whatever lies below a node scores at most what the node scores. The
best-first search below is that branch-and-bound (Land and Doig 1960), with the nodes of one step of several searches in
one forward pass.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recalign.llm.scoring.branches import PROMPT_END, Branches

ROOT = 0
NODES_AT_ONCE = 256  # nodes in one forward pass: 50 MB of logits at 49,152 tokens
WIDTH = 64  # of them of one search in a step: more waste some of them, fewer waste the machine
SEARCHED = 2048  # nodes after which a search scores the rest as `item_logprobs` does, whose cache does not grow
KEPT = 8192  # nodes of all searches whose states are kept: past them the largest one is finished that way
WHOLE = -2  # in place of a place: the title has ended
MANY = 100  # from so many wanted items on a search saves nothing
Floats = NDArray[np.float64]


class Trie:
    """Sequences of token ids by their shared beginnings; nodes in preorder, the root (the prompt's end) first.

    items: the items [M] in ascending id; parent, token, depth: of each node (the root's token is −1); children: nodes;
    holds: places in `items` of the sequences that end at a node, several where they read alike; ends: their inverse.
    """

    def __init__(self, sequences: Mapping[int, Sequence[int]]) -> None:
        """sequences: item -> token ids. Raises ValueError where one is empty."""
        self.items = sorted(sequences)
        self.parent, self.token, self.depth = [-1], [-1], [0]
        self.children: list[list[int]] = [[]]
        self.holds: list[list[int]] = [[]]
        self.ends = [0] * len(self.items)
        line: list[int] = [ROOT]
        before: tuple[int, ...] = ()
        for ids, place in sorted((tuple(sequences[item]), place) for place, item in enumerate(self.items)):
            if not ids:
                raise ValueError(f"item {self.items[place]} has no tokens")
            shared = _shared(before, ids)
            del line[shared + 1 :]
            for token in ids[shared:]:
                line.append(self._add(line[-1], token))
            self.holds[line[-1]].append(place)
            self.ends[place] = line[-1]
            before = ids

    def __len__(self) -> int:
        """Nodes, the root included."""
        return len(self.token)

    @property
    def inner(self) -> list[int]:
        """The nodes that need the model: those with children, but for the root, which is the prompt's end."""
        return [node for node in range(1, len(self)) if self.children[node]]

    def line(self, node: int) -> list[int]:
        """The nodes from the root's child down to `node`."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def below(self, nodes: Iterable[int]) -> list[int]:
        """Places in `items` of all that end at or below the nodes."""
        found, waiting = [], list(nodes)
        while waiting:
            node = waiting.pop()
            found += self.holds[node]
            waiting += self.children[node]
        return found

    def tokens(self, place: int) -> list[int]:
        """The sequence of the item at a place in `items`."""
        return [self.token[node] for node in self.line(self.ends[place])]

    def largest_below(self, values: Floats) -> list[float]:
        """The largest of the items' `values` [M] at or below each node; −inf where there is none."""
        largest = [max((float(values[place]) for place in places), default=-math.inf) for places in self.holds]
        for node in range(len(self) - 1, ROOT, -1):
            parent = self.parent[node]
            largest[parent] = max(largest[parent], largest[node])
        return largest

    def _add(self, parent: int, token: int) -> int:
        node = len(self)
        self.parent.append(parent)
        self.token.append(token)
        self.depth.append(self.depth[parent] + 1)
        self.children.append([])
        self.holds.append([])
        self.children[parent].append(node)
        return node


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def next_logprobs(trie: Trie, nodes: Sequence[int], rows: Tensor) -> list[list[float]]:
    """The log-prob of each child of each node, given the model's [N, V] after the nodes."""
    index = [number for number, node in enumerate(nodes) for _ in trie.children[node]]
    tokens = [trie.token[child] for node in nodes for child in trie.children[node]]
    values = iter(rows[index, tokens].double().tolist())
    return [[next(values) for _ in trie.children[node]] for node in nodes]


def item_logprobs(branches: Branches, trie: Trie, prompt: int = 0) -> Floats:
    """Σ_t log π(y_t | x, y_<t) of every title after one of the prompts, [M] as `trie.items`, in nats.

    Each node is computed once, `NODES_AT_ONCE` in a forward pass, on the prompt's cached states. In preorder the
    ancestors of a run of nodes are in the run or are those of its first node, which are computed again. What has grown
    before stays.
    """
    total, start = np.zeros(len(trie)), len(branches)

    def fill(nodes: Sequence[int], rows: Tensor) -> None:
        for node, gains in zip(nodes, next_logprobs(trie, nodes, rows), strict=True):
            total[trie.children[node]] = total[node] + gains

    fill([ROOT], branches.first[[prompt]])
    inner = trie.inner
    for first in range(0, len(inner), NODES_AT_ONCE):
        run = inner[first : first + NODES_AT_ONCE]
        nodes = [*trie.line(trie.parent[run[0]]), *run]
        place = {node: number for number, node in enumerate(nodes, start=start)} | {ROOT: PROMPT_END - prompt}
        rows = branches.grow([trie.token[node] for node in nodes], [place[trie.parent[node]] for node in nodes])
        branches.cut(start)
        fill(run, rows[-len(run) :])
    return total[trie.ends]


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a search is to find: the k items with the highest log π(title | prompt) + term.

    terms [M]: each item's own part of the score, 0 by default, −inf for an item that is left out. equals [M]: what
    items of equal score stand by, lowest first; their ids by default.
    """

    k: int
    terms: Floats | None = None
    equals: Sequence[int] | None = None


@dataclass(frozen=True)
class Found:
    """What a search found: (item, score), best first; nodes computed, in steps."""

    items: list[tuple[int, float]]
    nodes: int
    steps: int


def best_items(branches: Branches, trie: Trie, wanted: Sequence[Wanted]) -> list[Found]:
    """The best items after each prompt, exactly, without computing most of the tree; one `Wanted` a prompt.

    A node leads to at most its own log-prob plus the largest term below it, and is left once k items score more. Each
    forward pass computes the best open nodes of all prompts whose search goes on. Equal to `item_logprobs` + terms,
    sorted; where `SEARCHED` nodes do not settle a search, what is left of it is scored that way. `branches` must not
    have grown, and has not when this returns.
    """
    searches = [_Search(branches, trie, prompt, each) for prompt, each in enumerate(wanted)]
    while going := [search for search in searches if search.promising()]:
        largest = max(going, key=lambda search: search.nodes)
        for search in going:
            full = search is largest and len(branches) >= KEPT
            if full or search.nodes >= SEARCHED or search.wanted.k >= MANY:
                search.finish()
        if going := [search for search in going if search.promising()]:
            _step(branches, trie, going)
    branches.cut()
    return [search.found for search in searches]


def _step(branches: Branches, trie: Trie, searches: "Sequence[_Search]") -> None:
    """Compute the best open nodes of each search in one forward pass over them all."""
    width = max(1, min(WIDTH, NODES_AT_ONCE // len(searches)))
    taken = [search.take(width) for search in searches]
    flat, start = [each for group in taken for each in group], len(branches)
    rows = branches.grow([trie.token[each.node] for each in flat], [each.parent for each in flat])
    for search, group in zip(searches, taken, strict=True):
        search.open(group, rows[: len(group)], start)
        search.nodes, search.steps = search.nodes + len(group), search.steps + 1
        rows, start = rows[len(group) :], start + len(group)


class _Open(NamedTuple):
    """A node that is yet to be computed; the first one has the highest bound."""

    cost: float  # −bound
    node: int
    logprob: float
    parent: int  # place


class _Search:
    """A best-first search after one prompt: what is open, and the k best so far, the worst of them first.

    best: (score, minus the item's place among equals, item).
    """

    def __init__(self, branches: Branches, trie: Trie, prompt: int, wanted: Wanted) -> None:
        self.branches, self.trie, self.prompt, self.wanted = branches, trie, prompt, wanted
        self.terms = np.zeros(len(trie.items)) if wanted.terms is None else wanted.terms
        self.below = trie.largest_below(self.terms)
        self.equals = trie.items if wanted.equals is None else wanted.equals
        self.best: list[tuple[float, int, int]] = []
        self.frontier: list[_Open] = []
        self.nodes = self.steps = 0
        self.open([_Open(0.0, ROOT, 0.0, 0)], branches.first[[prompt]], PROMPT_END - prompt)

    @property
    def found(self) -> Found:
        return Found([(item, score) for score, _, item in sorted(self.best, reverse=True)], self.nodes, self.steps)

    def promising(self) -> bool:
        """Whether the best open node may lead to one of the k best; an equal score may, by its place among equals."""
        worst = self.best[0][0] if len(self.best) == self.wanted.k else -math.inf
        return bool(self.frontier) and -self.frontier[0].cost >= worst

    def take(self, width: int) -> list[_Open]:
        """The best open nodes, which are open no more."""
        taken: list[_Open] = []
        while len(taken) < width and self.promising():
            taken.append(heapq.heappop(self.frontier))
        return taken

    def open(self, taken: Sequence[_Open], rows: Tensor, start: int) -> None:
        """Offer what ends at the nodes' children, and put the children that go on to the open ones."""
        gained = next_logprobs(self.trie, [each.node for each in taken], rows)
        for place, (each, gains) in enumerate(zip(taken, gained, strict=True), start=start):
            for child, gain in zip(self.trie.children[each.node], gains, strict=True):
                for held in self.trie.holds[child]:
                    self.offer(held, each.logprob + gain)
                if self.trie.children[child] and self.below[child] > -math.inf:
                    bound = each.logprob + gain + self.below[child]
                    heapq.heappush(self.frontier, _Open(-bound, child, each.logprob + gain, place))

    def offer(self, held: int, logprob: float) -> None:
        score, item = logprob + float(self.terms[held]), self.trie.items[held]
        if score > -math.inf:
            heapq.heappush(self.best, (score, -self.equals[held], item))
            if len(self.best) > self.wanted.k:
                heapq.heappop(self.best)

    def finish(self) -> None:
        """Score all that lies below the promising nodes, and close the search."""
        nodes = []
        while self.promising():
            nodes.append(heapq.heappop(self.frontier).node)
        # what ends at an open node itself was offered when its parent was computed
        children = [child for node in nodes for child in self.trie.children[node]]
        left = [held for held in self.trie.below(children) if self.terms[held] > -math.inf]
        rest = Trie({held: self.trie.tokens(held) for held in left})
        for held, logprob in zip(rest.items, item_logprobs(self.branches, rest, self.prompt), strict=True):
            self.offer(held, float(logprob))
        self.frontier.clear()
        self.nodes += len(rest.inner)
        self.steps += 1


def generate_title(branches: Branches, trie: Trie, beams: int = 1) -> int:
    """The item whose title a beam search over the tree ends with: always one of the tree's, the smallest id of twins.

    Each step keeps the `beams` beginnings and whole titles with the highest summed log-prob; 1 is greedy. As many beams
    as titles find the best one, as `best_items` does with less work. `branches` must not have grown, and has not when
    this returns. Raises ValueError for fewer than one beam.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}; 1 or more is allowed")
    whole: list[tuple[float, int, int]] = []  # (−log-prob, node, WHOLE)
    begun: list[tuple[float, int, int]] = [(0.0, ROOT, PROMPT_END)]  # (−log-prob, node, its place)
    rows, grown = branches.first, 0
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
