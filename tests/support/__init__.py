"""What several tests share: simulators, strategies, bounds and statistics."""
