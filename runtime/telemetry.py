"""Dependencies that report to their makers, and how each is told not to: before it is imported, whoever imports it.

Importing `aivsreal.runtime` calls `opt_out`, so every command, stage and program that uses the package is covered.
SECURITY.md says what each was seen to send.
"""

from __future__ import annotations

import os
import sys

OPT_OUTS = {
    # ONNX Runtime from 1.29 on. Read at its import: `disable_telemetry_events()` comes too late for the device id.
    "ORT_DISABLE_TELEMETRY": "1",
    # huggingface_hub, which timm imports. It has a function that reports; nothing that is used here calls it.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Ray reports how a cluster is used.
    "RAY_USAGE_STATS_ENABLED": "0",
}
OPENVINO = "openvino_telemetry"
"""OpenVINO from 2024.2 on sends an event at its import by this package, and has a stub for where that is missing."""


def opt_out() -> None:
    """Set what is not set yet: what a user has chosen for these packages stays."""
    for name, value in OPT_OUTS.items():
        if not os.environ.get(name):
            os.environ[name] = value
    if OPENVINO not in sys.modules and not _chosen_for_openvino():
        sys.modules[OPENVINO] = None  # type: ignore[assignment]  # as the language has it: an import of it fails


def _chosen_for_openvino() -> bool:
    """Whether `opt_in_out --opt_in` was run: its answer is in a file, and no variable is read."""
    file = os.path.expanduser("~/intel/openvino_telemetry")
    if not os.path.isabs(file):
        return False  # no home folder is known, and a folder "~" here is nobody's answer
    try:
        with open(file, encoding="ascii", errors="replace") as answer:
            return answer.readline().strip() == "1"
    except OSError:
        return False
