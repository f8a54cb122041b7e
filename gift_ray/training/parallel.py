"""Data-parallel training: each worker takes its rows of every batch, and the gradients are summed.

Outside a process group these functions return what they are given. No other file uses torch.distributed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, distributed

from gift_ray.training.devices import Scalar


def workers() -> tuple[int, int]:
    """(this worker's rank, how many there are): (0, 1) outside a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_first() -> bool:
    """Whether this is the worker that writes what all of them have computed alike."""
    return workers()[0] == 0


def share(rows: Sequence[int]) -> list[int]:
    """This worker's part of the rows of a batch that every worker drew alike; it may be empty."""
    rank, count = workers()
    return list(rows[rank::count])


def add_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over all workers, the same bits on every one of them."""
    if workers()[1] == 1:
        return list(tensors)
    sums = [tensor.contiguous() for tensor in tensors]
    for pending in [distributed.all_reduce(tensor, async_op=True) for tensor in sums]:
        pending.wait()
    return sums


def mean_of(values: Mapping[str, Scalar], rows: int) -> dict[str, Scalar]:
    """Means over the rows of all workers, from the means of each over its own `rows`. NaN stays NaN.

    Several workers wait for their values here, since one without rows does not know their names.
    """
    _, count = workers()
    if count == 1:
        return dict(values)
    parts: list[tuple[dict[str, float], int]] = [({}, 0)] * count
    own = {name: float(value) for name, value in values.items()}
    distributed.all_gather_object(parts, (own, rows))
    seen = [(found, weight) for found, weight in parts if weight > 0]
    total = sum(weight for _, weight in seen)
    return {name: sum(found[name] * w for found, w in seen) / total for name in seen[0][0]}


def agreed(value: bool) -> bool:
    """The first worker's value, on every worker."""
    if workers()[1] == 1:
        return value
    answer = [value]
    distributed.broadcast_object_list(answer, src=0)
    return answer[0]
