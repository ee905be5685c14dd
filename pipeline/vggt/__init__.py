"""VGGT's aggregator: pictures of one step to geometry tokens, offline and in a rollout alike."""
