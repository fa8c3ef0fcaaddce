"""States of the lower layers, which carry no adapter: equal for the base, SFT and whatever is trained from it.

With lora.layers only the upper layers of a model differ from the base's. So what enters the middle one is kept once for
a row of token ids, and later passes over the same row begin there: other systems that rank the same cases, and
validation at another step. The same operations run on the same numbers, so log-probs are equal bit for bit.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recalign.common.artifacts import digest_of, replacing
from recalign.llm.scoring.logprobs import SCORER, Way, example, special_tokens, verdict_of
from recalign.llm.scoring.ways import base_of, shared_logprobs

log = logging.getLogger(__name__)
MOST_BYTES = 2**28  # of states that are kept at once; rows beyond are computed each time
UNUSED_SECONDS = 86_400  # states in a folder that nobody read for so long are removed
_right: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


class LowerStates:
    """What enters the middle layer, by row: in a folder, which may be deleted at any time, or in memory without one."""

    def __init__(self, place: Path | None = None) -> None:
        self._place = place
        self._own: dict[str, Tensor] = {}
        self._bytes: int | None = None

    @contextmanager
    def used(
        self, model: torch.nn.Module, model_key: str, prompts: Sequence[list[int]], responses: Sequence[list[list[int]]]
    ) -> Iterator[None]:
        """Inside, one call of `response_logprobs` on these prompts and responses, without gradients, begins at the
        middle layer if the row was read before; else what enters it is kept.

        model_key: of the base, its precision and its quantisation. Nothing is reused where adapters begin below the
        middle, where prompts hold vectors, or where the model does not score in shared prompts.
        """
        layers = middle(model)
        vectors = any(token < 0 for group in [*prompts, *(r for own in responses for r in own)] for token in group)
        if layers is None or vectors or torch.is_grad_enabled():
            yield
            return
        key = digest_of([SCORER, model_key, len(layers) // 2, list(prompts), list(responses)])
        kept = self._read(key)
        if kept is not None:
            with beginning_at(layers, kept.to(next(model.parameters()).device)):
                yield
            return
        found: list[Tensor] = []
        with noticing(layers, found):
            yield
        if len(found) == 1:
            self._write(key, found[0])

    def _read(self, key: str) -> Tensor | None:
        if self._place is None:
            return self._own.get(key)
        file = self._place / f"{key}.safetensors"
        try:
            states = load_file(file)["states"]
            file.touch()
        except (OSError, SafetensorError):  # not there, swept meanwhile, or damaged: then it is computed
            return None
        return states

    def _write(self, key: str, states: Tensor) -> None:
        if self._bytes is None:
            self._bytes = self._sweep()
        self._bytes += states.nbytes
        if self._bytes > MOST_BYTES:
            return
        if self._place is None:
            self._own[key] = states
            return
        self._place.mkdir(parents=True, exist_ok=True)
        with replacing(self._place / f"{key}.safetensors") as partial:
            save_file({"states": states.cpu().contiguous()}, partial)

    def _sweep(self) -> int:
        """Remove what was not used lately; the bytes of the rest."""
        left = 0
        for file in self._place.glob("*.safetensors") if self._place else ():
            try:
                told = file.stat()
                if time.time() - told.st_mtime > UNUSED_SECONDS:
                    file.unlink()
                else:
                    left += told.st_size
            except FileNotFoundError:  # another process swept it
                continue
        return left


def middle(model: torch.nn.Module) -> torch.nn.ModuleList | None:
    """The decoder's layers where passes may begin at the middle one; None where they may not.

    No layer below may carry an adapter or train, and beginning there must give the same log-probs on a short example,
    bit for bit, which is tried once a model.
    """
    base = base_of(model)
    layers = getattr(base.get_decoder() if hasattr(base, "get_decoder") else None, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) < 2 or verdict_of(model).way != Way.SHARED:
        return None
    below = list(layers)[: len(layers) // 2]
    if any("lora_" in name or weight.requires_grad for layer in below for name, weight in layer.named_parameters()):
        return None
    if base not in _right:
        _right[base] = _same(model, layers)
    return layers if _right[base] else None


def _same(model: torch.nn.Module, layers: torch.nn.ModuleList) -> bool:
    base = base_of(model)
    case = example(len(base.get_input_embeddings().weight), special_tokens(base))  # type: ignore[arg-type]
    found: list[Tensor] = []
    with torch.inference_mode():
        with noticing(layers, found):
            whole = shared_logprobs(model, *case).sums
        if len(found) != 1:
            return False
        whole = shared_logprobs(model, *case).sums  # the head may answer another way from the second pass on
        try:
            with beginning_at(layers, found[0]):
                same = torch.equal(shared_logprobs(model, *case).sums, whole)
        except Exception as error:  # what an architecture expects of its lower layers shows itself in many ways
            log.debug("%s cannot begin at its middle layer: %s", type(base).__name__, error)
            return False
    return same


@contextmanager
def noticing(layers: torch.nn.ModuleList, found: list[Tensor]) -> Iterator[None]:
    """Inside, what enters the middle layer is put into `found`."""

    def keep(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            found.append(args[0].detach())

    handle = layers[len(layers) // 2].register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def beginning_at(layers: torch.nn.ModuleList, states: Tensor) -> Iterator[None]:
    """Inside, layers below the middle pass on what they get, and the middle one gets `states` [1, T, d]."""
    half = len(layers) // 2
    with ExitStack() as undo:
        for layer in list(layers)[:half]:
            undo.callback(layer.__dict__.pop, "forward", None)
            layer.__dict__["forward"] = _passing_on(layer)
        handle = layers[half].register_forward_pre_hook(lambda module, args: (states, *args[1:]))
        undo.callback(handle.remove)
        yield


def _passing_on(layer: torch.nn.Module) -> Callable[..., Any]:
    return lambda hidden_states, *args, **kwargs: hidden_states
