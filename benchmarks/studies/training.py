"""How many images a second the parts of training manage here: loading, and a step of the network.

Run `python -m aivsreal.benchmarks.studies.training DATA`. The slower of the two bounds a run, so it says whether to add
`--workers` and `--cache` or a faster device. Ratios within one call count; absolute numbers are this machine's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from aivsreal.benchmarks.machine import machine_facts
from aivsreal.runtime.commands.frame import command
from aivsreal.runtime.errors import MissingExtra
from aivsreal.train.config import PRESETS, TrainConfig
from aivsreal.train.samples import Sample, in_split, limited, samples_from_data


def loading_rate(samples: Sequence[Sample], config: TrainConfig, pixels_of: Any, workers: int, device: str) -> float:
    """Images a second through decoding, cropping and augmentation, one pass over the samples."""
    import torch

    from aivsreal.train.fit.augment import augmented
    from aivsreal.train.fit.data import TrainBatches
    from aivsreal.train.fit.distributed import Ranks

    batches = TrainBatches(samples, config, pixels_of, Ranks(), workers, torch.device(device))
    start, seen = perf_counter(), 0
    for step, (crops, target_B, _) in enumerate(batches.epoch(0)):
        augmented(crops, config.spec.size, config.augment, (config.seed, 0, step), torch.device(device))
        seen += len(target_B)
    _wait(device)
    return seen / (perf_counter() - start)


def step_rate(config: TrainConfig, device: str, amp: bool, compiled: bool, steps: int) -> float:
    """Images a second through forward, backward and optimizer of `fit` on one batch that is already there."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from aivsreal.runtime.networks.arch import network_from_arch
    from aivsreal.runtime.networks.mapped import logits_from_output

    torch.manual_seed(config.seed)
    network = network_from_arch(config.arch, config.spec.size).to(device).train()
    forward: Any = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)
    batch_BCHW = torch.randn(config.batch_size, 3, config.spec.size, config.spec.size, device=device)
    target_B = torch.zeros(config.batch_size, device=device)
    if device != "cpu":
        network.to(memory_format=torch.channels_last)
        batch_BCHW = batch_BCHW.to(memory_format=torch.channels_last)
    half = torch.float16 if device != "cpu" else torch.bfloat16
    start = 0.0
    for step in range(-2, steps):  # the first steps compile and fill caches
        if step == 0:
            _wait(device)
            start = perf_counter()
        with torch.autocast(torch.device(device).type, half, enabled=amp):
            output = forward(batch_BCHW)
        loss = binary_cross_entropy_with_logits(logits_from_output(output), target_B)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    _wait(device)
    return steps * config.batch_size / (perf_counter() - start)


def _wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


@command("training")
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="labels", show_default=True)
@click.option("--arch", help="[default: the preset's]")
@click.option("--size", type=click.IntRange(32), help="[default: the preset's]")
@click.option("--images", type=click.IntRange(8), default=512, show_default=True, help="Loaded in one pass, about.")
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True)
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True)
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True, help="Time torch.compile too.")
def main(
    data: Path, preset: str, arch: str | None, size: int | None, images: int, steps: int, workers: int, compiled: bool
) -> None:
    """Time loading and steps on DATA and print one JSON line."""
    try:
        import torch

        from aivsreal.train.fit.cache import FilePixels, cached_pixels
    except ImportError as error:
        raise MissingExtra("train", error.name or "torch", "train") from None
    config = PRESETS[preset]
    config = replace(config, arch=arch or config.arch, spec=replace(config.spec, size=size or config.spec.size))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half_is_fast = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    samples = limited(in_split(samples_from_data(data), "train"), images // 2)
    with tempfile.TemporaryDirectory() as folder:
        cache, _ = cached_pixels(Path(folder) / "cache", samples, config.view_side, 2, lambda _: None)
        loading = {
            "files": loading_rate(samples, config, FilePixels(config.view_side), workers, device),
            "cache": loading_rate(samples, config, cache, workers, device),
        }
    kinds = {"fp32": (False, False), **({"half": (True, False)} if half_is_fast else {})}
    if compiled:
        kinds["compiled"] = (half_is_fast, True)
    rates = {name: step_rate(config, device, *kind, steps) for name, kind in kinds.items()}
    line = {
        "benchmark": "training", "preset": preset, "arch": config.arch, "size": config.spec.size,
        "batch_size": config.batch_size, "workers": workers, "device": device, "images": len(samples), "steps": steps,
        "loading_images_per_s": {name: round(rate, 1) for name, rate in loading.items()},
        "step_images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "machine": machine_facts(),
    }  # fmt: skip
    click.echo(json.dumps(line))


if __name__ == "__main__":
    main()
