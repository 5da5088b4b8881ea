"""One block after the other: journal, lease, and a thread that writes while the next batch is sampled."""
