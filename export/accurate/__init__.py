"""The accurate model without its encoder: what was trained, the graph without weights, and what was measured of it."""
