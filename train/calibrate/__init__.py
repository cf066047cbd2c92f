"""Which bounds a bundle gets; needs no torch."""
