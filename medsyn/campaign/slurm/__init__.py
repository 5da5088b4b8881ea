"""The campaign on a Slurm cluster: what is queued (`graph`) and how (`submit`, `script`), what runs there (`entry`)."""
