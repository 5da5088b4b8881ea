"""Generate images from prompts: sample, filter, mark, write and verify."""
