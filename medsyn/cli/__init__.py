"""Every command: argument parsing only."""
