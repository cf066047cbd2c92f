"""Measure what is shipped; results lie in `results/`, one JSON line a run."""

if __name__ != "aivsreal.benchmarks":
    raise ImportError("write aivsreal.benchmarks: the repository root is on sys.path")

import aivsreal.runtime  # noqa: F401  # opts out of what dependencies report, before one is imported
