"""The same task graph on one machine."""
