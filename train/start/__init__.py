"""What a training starts from: fresh weights, an encoder, a run or a bundle."""
