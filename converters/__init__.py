"""From RLDS directories to dataset directories."""
