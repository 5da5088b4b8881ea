"""What the images are worth: metrics and the report."""
