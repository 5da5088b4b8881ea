"""Expert ratings: the page that experts open, what comes back, how far to trust it, and what to ask next."""
