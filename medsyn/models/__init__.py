"""What is trained and what scores: the synthetic system, the Selector, the Policy."""
