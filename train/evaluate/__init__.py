"""Rolls a policy out in the LIBERO simulator and says how often it reaches the goal."""
