"""`medsyn.Generator`: images from Python, without a campaign."""
