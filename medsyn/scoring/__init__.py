"""Scores of any images, without a campaign: `medsyn score` and `medsyn.score`."""
