"""The models: the Stable Diffusion system, the Selector and the Policy."""
