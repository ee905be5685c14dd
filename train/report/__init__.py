"""The page in a run directory: how the run learned, how well it does, and its inputs."""
