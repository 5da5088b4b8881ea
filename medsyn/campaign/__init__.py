"""What runs where and in which order."""
