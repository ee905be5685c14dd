"""The directory of a run and its checkpoints: writes, reads, checks and exports them."""
