"""Where a campaign stands: what a state is (`state`), how it is read (`read`) and shown (`as_*`, `show_*`)."""
