"""One block after the other: its journal, and a thread that writes while the next batch is sampled."""
