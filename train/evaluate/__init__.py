"""How good a bundle is; needs no torch."""
