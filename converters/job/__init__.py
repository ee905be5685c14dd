"""Jobs that write datasets: shard by shard, resumable, by several workers."""
