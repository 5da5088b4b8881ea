"""Every generated file against its records, and a sample of the images made again."""
