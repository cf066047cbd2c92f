"""Starts or joins Ray, and gives the rows that its actors judge as a stream of tables."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import floor
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, read_datasource
from ray.exceptions import RayError, UserCodeException

from aivsreal.runtime.errors import BackendError
from aivsreal.runtime.scale.judging import FAILURE, How, Judging
from aivsreal.runtime.scale.listing import FILES_A_BLOCK, Listing

BLOCK_BYTES = 1 << 16  # Ray Data fills its blocks with 128 MB of listing otherwise, and the first actor gets them all
THREADS = 2  # of an actor where there is no GPU
_STARTS = 3


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors that judge."""

    count: int
    threads: int
    """Also CPUs of each, as Ray counts them."""
    gpus: float


@contextmanager
def cluster(address: str) -> Iterator[str]:
    """Ray, joined or started; gives what there is, for people.

    Args:
        address: of a cluster; `auto` is the one that this machine belongs to, `local` starts one on this machine.

    Raises:
        BackendError: there is no cluster, or another version of Ray runs it.
    """
    where = _joined(address)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it says is raised too
    try:
        there = ray.cluster_resources()
        machines = sum(name.startswith("node:") and "head" not in name for name in there)
        yield (
            f"Ray {ray.__version__}, {where}: {machines} machine{'s' * (machines > 1)}, {there.get('CPU', 0):g} CPUs, "
            f"{there.get('GPU', 0):g} GPUs"
        )
    finally:
        ray.shutdown()


def _joined(address: str) -> str:
    # Of this process and of what it starts: at each actor Ray warns of what holds here.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _silent():
            if address == "local":
                _start(quiet)
                return "started here"
            ray.init(address, **quiet)
            return f"at {ray.get_runtime_context().gcs_address}"
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(
            f"no Ray at {address}: {' '.join(str(error).split())}; start it with ray start --head, or use --ray local"
        ) from None


def _start(quiet: dict[str, Any]) -> None:
    os.environ.setdefault("RAY_worker_niceness", "0")  # as a plain scan: at Ray's 15 it gets what others leave
    for left in reversed(range(_STARTS)):
        try:
            ray.init("local", include_dashboard=False, **quiet)
            return
        except (ConnectionError, RuntimeError, ValueError):
            raise
        except Exception as error:  # Ray has no type for this: on a busy machine its parts miss each other
            ray.shutdown()
            if not left:
                raise RuntimeError(str(error)) from None


@contextmanager
def _silent() -> Iterator[None]:
    """Without what Ray's C++ says on standard error: that it has read its log level."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


def chosen_pool(actors: int | None, threads: int | None, gpus: float, grows: bool) -> Pool:
    """How many actors, with how many threads: what was asked for, and else what fills the machines that are there.

    Args:
        grows: whether machines may come; then `actors` are taken for what they will have room for.

    Raises:
        BackendError: there is no room for one, which Ray would wait for without end.
    """
    # An actor lies on one machine, whatever all of them have together.
    there = [one["Resources"] for one in ray.nodes() if one["Alive"] and one["Resources"].get("GPU", 0) >= gpus]
    cpus = [floor(machine.get("CPU", 0)) for machine in there]
    most = max([1, *cpus])
    each = threads or (1 if gpus else min(most, THREADS))
    rooms = [count // each for count in cpus]
    if gpus:
        rooms = [min(room, floor(machine["GPU"] / gpus)) for room, machine in zip(rooms, there, strict=True)]
    if not sum(rooms) and (actors is None or not grows):
        told = f"no machine has room for an actor of {each} CPUs and {gpus:g} GPUs: ask for fewer --threads or --gpus"
        raise BackendError(f"{told}, or say with --actors how many the cluster will have" if grows else told)
    actors = actors or sum(rooms)
    return Pool(actors, threads or max(1, min(sum(cpus) // actors, most, 8 if gpus else THREADS)), gpus)


def judged_tables(listing: Listing, how: How, pool: Pool, has_content: bool) -> Iterator[pa.Table]:
    """The rows of what is listed, in the order in which they are judged.

    Args:
        has_content: blocks have the files themselves, and are large.

    Raises:
        BackendError: the actors cannot judge, or Ray has failed.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    if not has_content:
        context.target_max_block_size = BLOCK_BYTES
    # Listing only waits, and takes no actor's place.
    rows = read_datasource(listing, num_cpus=0, override_num_blocks=listing.tasks)
    judged = rows.map_batches(
        Judging,
        fn_constructor_args=[replace(how, options=replace(how.options, threads=pool.threads))],
        batch_format="pyarrow",
        batch_size=FILES_A_BLOCK,
        compute=ActorPoolStrategy(size=pool.count),
        num_cpus=pool.threads,
        num_gpus=pool.gpus,
    )
    try:
        for table in judged.iter_batches(batch_size=None, batch_format="pyarrow"):
            if FAILURE in table.column_names:
                (message, *_) = table.column(FAILURE).drop_null().to_pylist()
                raise BackendError(message)
            yield table
    except UserCodeException:
        raise  # a defect of ours
    except RayError as error:
        raise BackendError(f"Ray failed: {' '.join(str(error).split())}; go on with --resume") from None
