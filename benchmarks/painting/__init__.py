"""Three ways of making images, for `benchmarks/generate.py`."""
