"""What a run reports: metrics, validation, throughput."""
