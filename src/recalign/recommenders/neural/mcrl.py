"""MCRL: a sequence encoder that also learns values, rewards and transitions of the decision process behind the log.

Model-enhanced contrastive reinforcement learning (Li et al., arXiv 2310.16566) has no public code, and its abstract no
formula: this is a reconstruction from the abstract. The loss is the encoder's own plus four weighted terms of
`mcrl_losses`. What we chose, because the text at hand does not say:

- the policy that ranks is the encoder's supervised head (as in SQN); values are there to be read, and shape the states;
- the encoder, its supervised loss and early stop are those of `next_item`, so that weights of 0 give it bit for bit;
- states, actions: a state at each position of a history, the next item; s' is the next position of the same row;
- reward: 1 for each event. A prepared log holds likes alone, so there are no kinds of reward to weigh; a value is then
  the discounted number of likes to come;
- terminal: the last like of a history. Where a long history is cut into rows, s' is not in the row, and that step is
  left out of what needs it;
- two linear heads of values over the catalogue, each learning from what the other gives to its best action, in the same
  step (no random turns, no target network); both terms of values are averaged over the two heads;
- the reward model is bilinear in a projected state and the item's embedding; wrong actions are drawn uniformly, none of
  which the user likes; no wrong states are drawn;
- the transition model is a two-layer network of state and embedding; the other states are other users' of the batch;
- both models only shape the states: neither enters the value's target.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recalign.data.records import Items
from recalign.params.recommenders import McrlParams
from recalign.recommenders.neural import losses as mcrl_losses
from recalign.recommenders.neural.encoders import Encoder
from recalign.recommenders.neural.next_item import NO_TARGET, Batch, Histories, Training
from recalign.recommenders.neural.sequential import Sequential, Settings, build_encoder
from recalign.recommenders.recommender import Fitting, Request, Tuning, own_seed
from recalign.recommenders.store import load_state, save_state
from recalign.recommenders.tuning import held_out

REWARD = 1.0  # of every event: see above


class DecisionHeads(nn.Module):
    """What is read off a state [N, d]: values of all items, and inputs of the reward and the transition model."""

    def __init__(self, items: int, dimension: int) -> None:
        super().__init__()
        self.values = nn.ModuleList([nn.Linear(dimension, items) for _ in range(2)])
        self.reward = nn.Linear(dimension, dimension)
        self.transition = nn.Sequential(nn.Linear(2 * dimension, dimension), nn.ReLU(), nn.Linear(dimension, dimension))


class Steps:
    """The steps (state, action, reward, next state) of a batch, N of them, flat: row by row, in each one's order."""

    def __init__(self, states: Tensor, batch: Batch) -> None:
        """states [B, T, d] of the batch's inputs."""
        real = batch.targets != NO_TARGET
        lengths = real.sum(dim=1)
        self.states = states[real]
        self.actions = batch.targets[real]
        self.users = batch.users.repeat_interleave(lengths)
        last = torch.zeros(len(self.actions), dtype=torch.bool)
        last[lengths.cumsum(dim=0) - 1] = True
        self.followed = (~last).nonzero().squeeze(1)  # the next step, of the same history, stands in the next place
        self.terminal = last & batch.ended.repeat_interleave(lengths)


class DecisionLosses:
    """The four weighted terms, as heads that `next_item` trains."""

    def __init__(self, heads: DecisionHeads, params: McrlParams, seed: int) -> None:
        self.heads = heads
        self.params = params
        self.draw = np.random.default_rng(seed)  # of its own, so that the encoder's draws stay what they are

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.heads.parameters()

    def loss(self, encoder: Encoder, states: Tensor, batch: Batch, histories: Histories) -> Tensor | None:
        """Weighted sum [] of the terms; None where every weight is 0."""
        terms = self.terms(encoder, states, batch, histories)
        weighted = [getattr(self.params, name) * value for name, value in terms.items()]
        return torch.stack(weighted).sum() if weighted else None

    def terms(self, encoder: Encoder, states: Tensor, batch: Batch, histories: Histories) -> dict[str, Tensor]:
        """Each term [] whose weight is not 0, by its name in the params, unweighted; the others cost nothing."""
        steps, found = Steps(states, batch), {}
        if self.params.temporal_difference or self.params.conservative:
            values = [head(steps.states) for head in self.heads.values]
            if self.params.temporal_difference:
                found["temporal_difference"] = self._temporal_difference(steps, values)
            if self.params.conservative:
                both = [mcrl_losses.conservative(own, steps.actions) for own in values]
                found["conservative"] = mcrl_losses.mean(torch.cat(both))
        if self.params.reward:
            found["reward"] = self._reward(encoder, steps, histories)
        if self.params.transition:
            found["transition"] = self._transition(encoder, steps)
        return found

    def _temporal_difference(self, steps: Steps, values: list[Tensor]) -> Tensor:
        known = torch.cat([steps.followed, steps.terminal.nonzero().squeeze(1)])
        errors = []
        for own, other in (values, values[::-1]):
            following = own.new_zeros(len(steps.actions))
            following[steps.followed] = mcrl_losses.double_q(own, other)[steps.followed + 1]
            taken = own.gather(1, steps.actions[:, None]).squeeze(1)
            reward = torch.full_like(taken, REWARD)
            error = mcrl_losses.temporal_difference(taken, reward, following, steps.terminal, self.params.discount)
            errors.append(error[known])
        return mcrl_losses.mean(torch.cat(errors))

    def _reward(self, encoder: Encoder, steps: Steps, histories: Histories) -> Tensor:
        drawn = torch.from_numpy(self.draw.integers(histories.items, size=self.params.negatives))
        allowed = histories.allowed(steps.users, drawn)
        asked = self.heads.reward(steps.states)
        positive, negative = encoder.embedding(steps.actions), encoder.embedding(drawn)
        return mcrl_losses.mean(mcrl_losses.contrastive_reward(asked, positive, negative, allowed))

    def _transition(self, encoder: Encoder, steps: Steps) -> Tensor:
        came = steps.followed + 1
        if not len(came):
            return steps.states.sum() * 0.0
        drawn = came[torch.from_numpy(self.draw.integers(len(came), size=self.params.negatives))]
        allowed = steps.users[came][:, None] != steps.users[drawn]
        of, actions = steps.states[steps.followed], encoder.embedding(steps.actions[steps.followed])
        predicted = self.heads.transition(torch.cat([of, actions], dim=1))
        following, others = steps.states[came], steps.states[drawn]
        return mcrl_losses.mean(
            mcrl_losses.contrastive_transition(predicted, following, others, allowed, self.params.temperature)
        )


class MCRL:
    """Ranks by the supervised head of its backbone; knows values besides."""

    name = "mcrl"

    def __init__(self, backbone: Sequential, heads: DecisionHeads) -> None:
        self.backbone = backbone
        self.heads = heads

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> Tensor:
        """[B, C] scores of the candidates, or [B, items] of the whole catalogue; as `Sequential.scores`."""
        return self.backbone.scores(requests, candidates)

    @torch.no_grad()
    def values(self, histories: list[tuple[int, ...]]) -> Tensor:
        """Q [B, items] of each item after a history, the mean of both heads: discounted likes to come, it included.

        Untrained where the weights of both terms of values were 0; pressed down by the conservative one.
        """
        states = self.backbone.last(histories)
        return torch.stack([head(states) for head in self.heads.values]).mean(dim=0)

    def save(self, path: Path) -> None:
        """Write the weights of backbone and heads, and the settings, into the folder `path`."""
        weights = {name: value.numpy() for name, value in self._modules().state_dict().items()}
        settings = {"backbone": self.backbone.name} | asdict(self.backbone.settings)
        save_state(path, self.name, self.backbone.catalogue, weights, settings)

    @classmethod
    def load(cls, path: Path, catalogue: Items) -> "MCRL":
        """Read what `save` wrote. Raises RecalignError for another recommender, or a model of another catalogue."""
        weights, settings = load_state(path, cls.name, catalogue)
        backbone, built = settings.pop("backbone"), Settings(**settings)
        encoder = build_encoder(backbone, len(catalogue.ids), built)
        model = cls(
            Sequential(catalogue, backbone, encoder.eval(), built),
            DecisionHeads(len(catalogue.ids), built.dimension),
        )
        model._modules().load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        return model

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.backbone.encoder, "heads": self.heads})


def fit(log: Fitting) -> tuple[MCRL, Tuning]:
    """Train a backbone as `next_item.fit` does, from the same random numbers, with the further terms of params.mcrl.

    Also its curve of held-out NDCG@10.
    """
    torch.set_num_threads(log.threads)
    params, heads_seed = log.params, own_seed(log.seed, MCRL.name)

    def make_losses(encoder: Encoder) -> DecisionLosses:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(heads_seed)
            heads = DecisionHeads(len(log.catalogue.ids), params.next_item.dimension)
        return DecisionLosses(heads, params.mcrl, heads_seed)

    training = Training.of(params.mcrl.backbone, log.catalogue, log.clock, log.seed, params.next_item)
    cases = held_out(log.catalogue, log.events, log.clock, log.seed, log.met)
    backbone, losses, report = training.fit(log.events, cases, make_losses)
    return MCRL(backbone, losses.heads), report


def load(name: str, path: Path, catalogue: Items) -> MCRL:
    """Read what `save` wrote."""
    return MCRL.load(path, catalogue)
