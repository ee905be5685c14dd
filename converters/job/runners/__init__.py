"""Runners that hand the shards of a conversion to a cluster."""
