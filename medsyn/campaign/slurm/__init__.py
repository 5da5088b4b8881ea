"""The campaign on a Slurm cluster: what is queued (`graph`) and how (`submit`, `sbatch`), what runs there (`job`)."""
