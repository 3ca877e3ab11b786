"""The processes of one run: which rank this is, on which device, and how they talk."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch

log = logging.getLogger(__name__)

TIMEOUT: Final = timedelta(minutes=10)
"""A collective that takes longer has lost a rank; passed explicitly because other libraries change the default."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among the processes of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0


@contextlib.contextmanager
def open_world() -> Iterator[World]:
    """Join the process group that torchrun describes, or make one of a single process; leave it at the end.

    One process needs no port: its group lives in memory.
    """
    import torch.distributed as dist

    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed guesses, and prints that it did
    backend = "nccl" if device.type == "cuda" else "gloo"
    if size > 1:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=TIMEOUT)
    try:
        yield World(rank=rank, size=size, device=device)
        # Without a last meeting a finished run sometimes aborts while a slower rank still talks to it.
        dist.barrier()
    finally:
        _close()


def _close() -> None:
    import torch.distributed as dist
    from deepspeed import comm

    if comm.is_initialized():
        comm.destroy_process_group()
    elif dist.is_initialized():
        dist.destroy_process_group()
