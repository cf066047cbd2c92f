"""Dependencies that report to their makers, and how each is told not to: before it is imported, whoever imports it.

Importing `aivsreal.runtime` calls `opt_out`, so every command, stage and program that uses the package is covered.
SECURITY.md says what each was seen to send.
"""

from __future__ import annotations

import os
import sys

RAY = "RAY_USAGE_STATS_ENABLED"
OPT_OUTS = {
    # ONNX Runtime from 1.29 on. Read at its import: `disable_telemetry_events()` comes too late for the device id.
    "ORT_DISABLE_TELEMETRY": "1",
    # huggingface_hub, which timm imports. It has a function that reports; nothing that is used here calls it.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Ray reports each hour how a cluster that it starts is used.
    RAY: "0",
}
OPENVINO = "openvino_telemetry"
"""OpenVINO from 2024.2 on sends an event at its import by this package, and has a stub for where that is missing."""
# What commands of these packages leave in the home folder where somebody wants to report; no variable says it.
_WANTED = {OPENVINO: ("intel/openvino_telemetry", "1"), RAY: (".ray/config.json", '"usage_stats":true')}


def opt_out() -> None:
    """Set what is not set yet: what a user has chosen for these packages stays."""
    for name, value in OPT_OUTS.items():
        if not os.environ.get(name) and not _wanted(name):
            os.environ[name] = value
    if OPENVINO not in sys.modules and not _wanted(OPENVINO):
        sys.modules[OPENVINO] = None  # type: ignore[assignment]  # as the language has it: an import of it fails


def _wanted(name: str) -> bool:
    if name not in _WANTED:
        return False
    place, words = _WANTED[name]
    file = os.path.join(os.path.expanduser("~"), place)
    if not os.path.isabs(file):
        return False  # no home folder is known, and a folder "~" here is nobody's answer
    try:
        with open(file, encoding="utf-8", errors="replace") as answer:
            return words in "".join(answer.read().split())
    except OSError:
        return False
