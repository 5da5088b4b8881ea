"""Procedural images whose captions are true by construction: the embedded data set."""
