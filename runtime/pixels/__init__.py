"""From a file's bytes to pixels: what it is, whether it is whole, and how its colours are to be read."""
