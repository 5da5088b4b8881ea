"""Where a campaign stands: the states (`state`), how they are found out (`read`), and how they are shown."""
