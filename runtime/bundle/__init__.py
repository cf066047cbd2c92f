"""What a model is: a folder with its manifest, its engines and its card."""
