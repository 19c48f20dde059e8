"""Cost, trust and precision of a plan before it runs."""
