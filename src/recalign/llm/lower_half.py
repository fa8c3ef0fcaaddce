"""The lower half of a model's layers, computed once for all adapters that leave it as it is.

An adapter on the upper layers changes nothing below them: what the lower half gives to a prompt with its responses is
the same for the base, for the SFT model and for every aligned one, for a reference and its policy. These states are
kept in a folder, and the forward pass of whoever asks again begins in the middle.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recalign.common.artifacts import digest_of, replacing
from recalign.common.errors import RecalignError
from recalign.llm.packing import PackedRow

log = logging.getLogger(__name__)
MOST_BYTES = 1 << 30  # of a folder: some 460,000 tokens of the default model in fp32, 130,000 of a 7B model in bf16
Group = Sequence[Sequence[int]]
_used: WeakKeyDictionary[torch.nn.Module, "LowerHalf"] = WeakKeyDictionary()


class LowerHalf:
    """States behind the lower half of a model's layers, of prompts with their responses, kept in a folder.

    base: the model of transformers; key: of all that the states depend on beside the token ids. A file holds what one
    forward pass gave, [tokens, width] a prompt with its responses. Where files take more than half of MOST_BYTES the
    oldest are removed at the start, and nothing is added beyond it. Raises ValueError where `why_not` says why.
    """

    def __init__(self, base: Any, folder: Path, key: str) -> None:
        if (reason := why_not(base)) is not None:
            raise ValueError(reason)
        self.layers = _lower(base)
        self._folder, self._key = folder, key
        self._files: dict[str, Path] = {}
        self._room = MOST_BYTES
        files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files:
            self._room -= file.stat().st_size
            if self._room < MOST_BYTES // 2:
                self._room += file.stat().st_size
                file.unlink(missing_ok=True)
            else:
                self._files |= dict.fromkeys(_names(file), file)

    @contextmanager
    def begun(self, row: PackedRow, prompts: Group, responses: Sequence[Group]) -> Iterator[None]:
        """Inside, a forward pass over the packed row of prompts and responses begins with states that are kept.

        Where one of them is missing it computes them all, and they are kept.
        """
        asked = zip(prompts, responses, strict=True)
        places = {
            digest_of([self._key, prompt, group]): row.layout.gather[b, : len(prompt) + sum(len(r) - 1 for r in group)]
            for b, (prompt, group) in enumerate(asked)
        }
        kept = {name: self._read(name, len(own)) for name, own in places.items()}
        if any(states is None for states in kept.values()):
            heard: list[Tensor] = []
            listening = self.layers[-1].register_forward_hook(lambda *call: heard.append(call[-1]))
            try:
                yield
            finally:
                listening.remove()
            self._write({name: heard[0][0].detach()[own] for name, own in places.items()})
            return
        known = [states for states in kept.values() if states is not None]
        whole = known[0].new_empty(row.input_ids.shape[1], known[0].shape[1])
        for own, states in zip(places.values(), known, strict=True):
            whole[own] = states
        through, begin = self.layers[:-1], self.layers[-1:]
        with _replaced(through, lambda states, *_, **__: states), _replaced(begin, lambda *_, **__: whole[None]):
            yield

    def _read(self, name: str, tokens: int) -> Tensor | None:
        if name not in self._files:
            return None
        try:
            with safe_open(self._files[name], framework="pt") as file:
                states: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError):  # removed or damaged since: it is computed again
            return None
        return states if len(states) == tokens else None

    def _write(self, states: dict[str, Tensor]) -> None:
        size = sum(each.nbytes for each in states.values())
        if size > self._room:
            return
        self._room -= size
        path = self._folder / f"{digest_of(sorted(states))}.safetensors"
        try:
            with replacing(path) as partial:
                save_file({name: each.contiguous() for name, each in states.items()}, partial)
        except RecalignError as error:  # the disk is full: nothing is lost but time
            log.warning("states of the lower half are kept no longer: %s", error)
            self._room = 0
        else:
            self._files |= dict.fromkeys(states, path)


def why_not(base: Any) -> str | None:
    """Why the lower half of a model is its own, or cannot be told; None where its states are the base's."""
    layers = _lower(base)
    if not layers:
        return f"{type(base).__name__} has no one list of layers"
    upper = {id(module) for layer in _layers(base)[len(layers) :] for module in layer.modules()}
    below = [module for module in base.modules() if id(module) not in upper]
    if any(_adapted(module) for module in below):
        return "an adapter reaches below the upper half of the layers"
    if any(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
        return "the lower half of the layers is trained"
    return None


def use(base: torch.nn.Module, half: LowerHalf | None) -> None:
    """Let every later pass of `base` over a packed row begin with kept states; None: no more."""
    if half is None:
        _used.pop(base, None)
    else:
        _used[base] = half


@contextmanager
def begun(base: torch.nn.Module, row: PackedRow, prompts: Group, responses: Sequence[Group]) -> Iterator[None]:
    """As `LowerHalf.begun`, where `base` uses one; else nothing."""
    half = _used.get(base)
    if half is None:
        yield
        return
    with half.begun(row, prompts, responses):
        yield


def _layers(base: Any) -> list[torch.nn.Module]:
    """The model's layers; empty where there is not exactly one list of as many as its configuration says."""
    depth = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    lists = [m for m in base.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
    return list(lists[0]) if len(lists) == 1 else []


def _lower(base: Any) -> list[torch.nn.Module]:
    layers = _layers(base)
    return layers[: len(layers) // 2]


def _adapted(module: torch.nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as stored:
            return list(stored.keys())
    except (OSError, SafetensorError):
        return []


@contextmanager
def _replaced(modules: Sequence[torch.nn.Module], forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, the modules compute `forward` in place of their own."""
    own = [vars(module).get("forward") for module in modules]  # None: that of its class
    try:
        for module in modules:
            vars(module)["forward"] = forward
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            if before is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = before
