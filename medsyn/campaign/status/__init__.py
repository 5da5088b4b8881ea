"""Where a campaign stands: what a state is (`states`), how it is found out (`reading`), and how it is told."""
