"""The ways to fine-tune that `benchmarks/finetune.py` compares, and what is measured inside them."""
