"""The campaign on a Slurm cluster: what is queued (`graph`), how (`submit`, `script`), and what runs there (`entry`)."""
