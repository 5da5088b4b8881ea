"""Real images, of any format, as pixels between 0 and 1."""
