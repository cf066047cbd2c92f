"""With this folder on PYTHONPATH each Python process finds the fake GPU, so that commands can be run as they are."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
try:
    import aivsreal.runtime  # noqa: F401
except ImportError:  # a virtual environment that is only being made
    pass
else:
    import pytest
    from fake_cuda import CARD
    from fake_gpu import installed_gpu

    _GPU = replace(CARD, name="FAKE H100", capability=(9, 0))
    installed_gpu(pytest.MonkeyPatch(), Path(os.environ["FAKE_KERNEL"]), os.environ["FAKE_TENSORRT"], _GPU)
    sys.modules["torch"] = None  # type: ignore[assignment]  # it has no GPU to measure, and takes seconds to say so
    if os.environ["FAKE_REFUSAL"]:
        for _name in ("tensorrt", "tensorrt_rtx"):
            sys.modules[_name] = None  # type: ignore[assignment]
