"""The scene that a camera of the simulator shows: when, how perturbed, and how little is drawn."""
