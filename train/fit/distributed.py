"""The processes of one training run: alone, or the ranks that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is; `Ranks()` is a run without `torchrun`."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Index of this process on its machine, and so of its GPU."""

    @staticmethod
    def from_environment() -> Ranks:
        """What `torchrun` says in the environment (RANK, WORLD_SIZE, LOCAL_RANK)."""
        return Ranks(*(int(os.environ.get(name, default)) for name, default in _VARIABLES))

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def join(self, device: str) -> None:
        """Meet the other processes, over NCCL for GPUs and Gloo for CPUs; does nothing when alone."""
        if self.world > 1 and not distributed.is_initialized():
            if device.startswith("cuda"):
                torch.cuda.set_device(device)
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)

    def leave(self) -> None:
        """The end of `join`."""
        if self.world > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every world-th item: the parts of all ranks, taken in turn, are the whole."""
        return items[self.rank :: self.world]

    def gathered(self, mine: Any) -> list[Any]:
        """What each rank gives, in the order of ranks, on every rank; a wait for all of them too."""
        if self.world == 1:
            return [mine]
        everyone: list[Any] = [None] * self.world
        distributed.all_gather_object(everyone, mine)
        return everyone


_PATIENCE = timedelta(hours=6)  # while the first process fills a cache or asks a teacher
_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
