"""What `benchmarks/alignment.py` is made of: a world that is wrong on purpose, who looks at it, and what is counted."""
