"""Ways in which an image can be damaged, each in any amount: what a scorer learns to rank."""
