"""Titles as a tree of tokens: one pass that scores them all, the exact best of them, and generation held to them.

A title's log-prob only falls with each token, so whatever lies below a node scores at most what the node scores. The
best-first search below is that branch-and-bound (Land and Doig 1960), with the nodes of one step in one forward pass.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recalign.llm.branches import PROMPT_END, Branches

ROOT = 0
NODES_AT_ONCE = 256  # nodes in one forward pass over all titles: 50 MB of logits at 49,152 tokens
WIDTH = 64  # nodes in one step of the search: more waste some of them, fewer waste the machine
SEARCHED = 2048  # nodes after which the search scores the rest as `item_logprobs` does, whose cache does not grow
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


def item_logprobs(branches: Branches, trie: Trie) -> Floats:
    """Σ_t log π(y_t | x, y_<t) of every title, [M] as `trie.items`, in nats.

    Each node is computed once, `NODES_AT_ONCE` in a forward pass, on the prompt's cached states. In preorder the
    ancestors of a run of nodes are in the run or are those of its first node, which are computed again. `branches` must
    not have grown, and has not when this returns.
    """
    total = np.zeros(len(trie))

    def fill(nodes: Sequence[int], rows: Tensor) -> None:
        for node, gains in zip(nodes, next_logprobs(trie, nodes, rows), strict=True):
            total[trie.children[node]] = total[node] + gains

    fill([ROOT], branches.first[None])
    inner = trie.inner
    for start in range(0, len(inner), NODES_AT_ONCE):
        run = inner[start : start + NODES_AT_ONCE]
        nodes = [*trie.line(trie.parent[run[0]]), *run]
        place = {node: number for number, node in enumerate(nodes)} | {ROOT: PROMPT_END}
        rows = branches.grow([trie.token[node] for node in nodes], [place[trie.parent[node]] for node in nodes])
        branches.cut()
        fill(run, rows[-len(run) :])
    return total[trie.ends]


@dataclass(frozen=True)
class Found:
    """What a search found: (item, score), best first, equal scores by ascending item id; nodes computed, in steps."""

    items: list[tuple[int, float]]
    nodes: int
    steps: int


def best_items(branches: Branches, trie: Trie, k: int, terms: Floats | None = None) -> Found:
    """The k items with the highest log π(title | prompt) + term, exactly, without computing most of the tree.

    terms [M]: each item's own part of the score, 0 by default, −inf for an item that is left out. A node leads to at
    most its own log-prob plus the largest term below it, and is left once k items score more. Equal to `item_logprobs`
    + terms, sorted; where `SEARCHED` nodes do not settle it, what is left is scored that way. `branches` must not have
    grown, and has not when this returns.
    """
    search = _Search(branches, trie, k, np.zeros(len(trie.items)) if terms is None else terms)
    search.open([ROOT], [0.0], branches.first[None], [PROMPT_END])
    while search.promising():
        if k >= MANY or search.nodes >= SEARCHED:
            search.finish()
        else:
            search.step()
    branches.cut()
    return search.found


class _Search:
    """A best-first search: what is open, and the k best (score, −item) so far, the worst of them first."""

    def __init__(self, branches: Branches, trie: Trie, k: int, terms: Floats) -> None:
        self.branches, self.trie, self.k, self.terms = branches, trie, k, terms
        self.below = trie.largest_below(terms)
        self.best: list[tuple[float, int]] = []
        self.frontier: list[tuple[float, int, float, int]] = []  # (−bound, node, log-prob, place of its parent)
        self.nodes = self.steps = 0

    @property
    def found(self) -> Found:
        return Found([(-item, score) for score, item in sorted(self.best, reverse=True)], self.nodes, self.steps)

    def promising(self) -> bool:
        """Whether the best open node may lead to one of the k best; an equal score may, by a smaller id."""
        worst = self.best[0][0] if len(self.best) == self.k else -math.inf
        return bool(self.frontier) and -self.frontier[0][0] >= worst

    def step(self) -> None:
        """Compute the best open nodes in one forward pass."""
        taken: list[tuple[float, int, float, int]] = []
        while len(taken) < WIDTH and self.promising():
            taken.append(heapq.heappop(self.frontier))
        nodes, places = [node for _, node, _, _ in taken], range(self.nodes, self.nodes + len(taken))
        rows = self.branches.grow([self.trie.token[node] for node in nodes], [parent for *_, parent in taken])
        self.open(nodes, [logprob for _, _, logprob, _ in taken], rows, places)
        self.nodes += len(taken)
        self.steps += 1

    def open(self, nodes: Sequence[int], logprobs: Sequence[float], rows: Tensor, places: Sequence[int]) -> None:
        """Offer what ends at the nodes' children, and put the children that go on to the open ones."""
        for node, logprob, gains, place in zip(
            nodes, logprobs, next_logprobs(self.trie, nodes, rows), places, strict=True
        ):
            for child, gain in zip(self.trie.children[node], gains, strict=True):
                for held in self.trie.holds[child]:
                    self.offer(held, logprob + gain)
                if self.trie.children[child] and self.below[child] > -math.inf:
                    bound = logprob + gain + self.below[child]
                    heapq.heappush(self.frontier, (-bound, child, logprob + gain, place))

    def offer(self, held: int, logprob: float) -> None:
        score = logprob + float(self.terms[held])
        if score > -math.inf:
            heapq.heappush(self.best, (score, -self.trie.items[held]))
            if len(self.best) > self.k:
                heapq.heappop(self.best)

    def finish(self) -> None:
        """Score all that lies below the promising nodes in one pass, and close the search."""
        nodes = []
        while self.promising():
            nodes.append(heapq.heappop(self.frontier)[1])
        left = [held for held in self.trie.below(nodes) if self.terms[held] > -math.inf]
        rest = Trie({held: self.trie.tokens(held) for held in left})
        self.branches.cut()
        for held, logprob in zip(rest.items, item_logprobs(self.branches, rest), strict=True):
            self.offer(held, float(logprob))
        self.frontier.clear()
        self.nodes += len(rest.inner)
        self.steps += 1


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
