"""VGGT's aggregator: encodes the images of one step as geometry tokens, offline and in rollouts."""
