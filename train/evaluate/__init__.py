"""How good a bundle is, and which bounds it gets; needs no torch."""
