"""Several processes that train as one, started by `torchrun` or `accelerate launch`; alone, everything here is nothing.

Each process reads its share of a batch's parts. Gradients, losses and log-probs are added up or put together over all
of them, so that every process takes the same step from the same numbers; the first one alone writes.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from recalign.common.errors import RecalignError

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that the launcher started (WORLD_SIZE, RANK), and part from them at the end.

    Raises RecalignError where a launcher was asked for several and says nothing of them.
    """
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        # it leaves them to mpirun: without it a single process would train, with it each would write
        raise RecalignError(
            "accelerate launch sets no WORLD_SIZE with --cpu; start several processes on CPUs with "
            "'torchrun --standalone --nproc-per-node N', or with 'accelerate launch --multi_gpu --num_processes N'"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not first():
        logging.getLogger("recalign").setLevel(logging.WARNING)  # what the first one says goes for all
    try:
        yield
        distributed.barrier()  # nobody goes before the first one has written
    finally:
        distributed.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def first() -> bool:
    """Whether this is the process that writes."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def mine(parts: Sequence[T]) -> list[int]:
    """The indices of the parts that this process reads: every n-th of n processes."""
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    return list(range(rank, len(parts), count()))


def merged(own: Mapping[int, T]) -> dict[int, T]:
    """What all processes found, by index, in ascending index; the same in each of them."""
    found: list[Any] = [own]
    if count() > 1:
        found = [None] * count()
        distributed.all_gather_object(found, dict(own))
    together = {index: value for one in found for index, value in one.items()}
    return dict(sorted(together.items()))


def add_up_gradients(weights: Iterable[torch.Tensor]) -> None:
    """Add the gradients of all processes up, in place; one that read no part counts as zero.

    What has a gradient in none of them keeps none, so that the optimiser leaves it alone.
    """
    if count() == 1:
        return
    parameters = list(weights)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    found = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    flat = torch.cat([found, *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(flat)
    found, flat = flat[: len(found)], flat[len(found) :]
    pieces = flat.split([p.numel() for p in parameters])
    for parameter, piece, some in zip(parameters, pieces, found.tolist(), strict=True):
        parameter.grad = piece.view_as(parameter).clone() if some else None
