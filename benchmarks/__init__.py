"""Measure what is shipped; results lie in `results/`, one JSON line a run."""

if __name__ != "aivsreal.benchmarks":
    raise ImportError("write aivsreal.benchmarks: the repository root is on sys.path")
