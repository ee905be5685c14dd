"""Describes the config, devices and versions of a run."""
