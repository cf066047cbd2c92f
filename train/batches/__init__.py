"""What a step of a training takes: views from a cache, crops, damage, and where it is computed."""
