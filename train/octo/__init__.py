"""The Octo policy in Flax linen, with the parameter names of the released checkpoints."""
