"""The fake TensorRT has the names that each version's bindings have, and lacks those that they lack."""

from __future__ import annotations

from typing import Any

import pytest
from fake_tensorrt import SURFACE, VERSIONS, fake_tensorrt


def _has(module: Any, name: str) -> bool:
    owner, _, member = name.partition(".")
    return hasattr(module, owner) and (not member or hasattr(getattr(module, owner), member))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_exactly_the_names_that_its_bindings_had(version: str) -> None:
    module = fake_tensorrt(version)
    wrong = {name for name, versions in SURFACE.items() if _has(module, name) != (version in versions)}
    assert not wrong


def test_a_name_that_a_version_lacks_can_be_neither_read_nor_set() -> None:
    trt = fake_tensorrt("11.4")
    config = trt.Builder(trt.Logger()).create_builder_config()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        config.max_worksspace_size = 1
    with pytest.raises(AttributeError):
        _ = trt.BuilderFlag.FP16
    with pytest.raises(NotImplementedError):
        trt.Refitter()
