"""Candidates: seeded noise, the denoising loop, batches of them, and loading the models that make them."""
