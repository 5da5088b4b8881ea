"""Sample candidates: seeded noise, the denoising loop, batches, and loading the models."""
