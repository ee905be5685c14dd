"""The action heads, which turn the model's embedding of a step into a chunk of actions."""
