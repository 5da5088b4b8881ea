"""The inputs: tables, images, prompts, phantoms."""
