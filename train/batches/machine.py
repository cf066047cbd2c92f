"""Where a run computes: on which device and how precisely, alone or as one of the ranks that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")

_PATIENCE = timedelta(hours=6)  # while the first process fills a cache or asks a teacher
_VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


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

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process runs the body and the others run it then: they find the files that it wrote."""
        if not self.first:
            self.gathered(None)
        yield
        if self.first:
            self.gathered(None)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run computes; none of it is meant to change what is learned."""

    name: str = "cpu"
    """Of the device, as torch says it."""
    amp: bool = False
    """Mixed precision in bfloat16, where the hardware multiplies it."""
    workers: int = 2
    compiled: bool = False
    """`torch.compile` for the training step."""
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return torch.device(self.name)

    def begin(self, seed: int) -> None:
        """Seed torch, and have it compute the same again."""
        torch.manual_seed(seed)
        if self.device.type == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's stub

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, where it is on."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    def placed(self, network: nn.Module) -> nn.Module:
        """The network on the device."""
        if self.device.type != "cuda":
            return network.to(self.device)
        if self.ranks.world > 1:
            network = cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(network)  # it exists for CUDA alone
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def forward_of(self, learner: nn.Module, *, uses_all: bool) -> Callable[[torch.Tensor], Any]:
        """The forward of a training step: compiled and over all ranks, where that is asked for.

        Args:
            learner: on the device.
            uses_all: every parameter has a part in every loss.
        """
        forward: Any = learner
        if self.ranks.world > 1:
            on = [self.device] if self.device.type == "cuda" else None
            forward = DistributedDataParallel(learner, device_ids=on, find_unused_parameters=not uses_all)
        return cast("Callable[[torch.Tensor], Any]", torch.compile(forward) if self.compiled else forward)
