"""Images from prompts: sampling, filtering, committing, marking."""
