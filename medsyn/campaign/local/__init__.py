"""Run the same task graph on one machine."""
