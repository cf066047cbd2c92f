"""Measurements that decided something once; their rows are kept in `results/`."""
