"""Evaluate a campaign: metrics and the report."""
