"""Rolls a policy out in the LIBERO simulator and reports how often it reaches the goal."""
