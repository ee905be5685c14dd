"""A dataset at rest: schema, records, manifest, statistics; how they are read and written."""
