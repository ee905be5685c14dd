"""One training step: augmentation, loss, optimizer, and the state that they change."""
