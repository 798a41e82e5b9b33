"""Host input: records by index (sources, readers), pixels (decode), batches by step (pipeline)."""
