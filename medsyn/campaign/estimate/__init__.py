"""Hours, GiB of memory and of disk that a campaign is estimated to need; pure."""
