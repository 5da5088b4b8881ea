"""Make one block after another: its journal, and a thread that writes while the next batch is sampled."""
