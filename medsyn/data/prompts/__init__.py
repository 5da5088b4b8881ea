"""Prompt lists of any length: read, checked, stored by modality, balanced."""
