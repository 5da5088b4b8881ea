"""Whether synthetic images are copies of real ones: which, of what, and how sure that is."""
