"""What `benchmarks/scorers.py` measures, by scorer."""
