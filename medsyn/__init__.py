"""medsyn: Stable Diffusion for medical images as resumable Slurm campaigns."""

__version__ = "0.1.0"
