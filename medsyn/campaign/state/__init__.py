"""What happened, on disk: the campaign's file, done markers, attempts, the ledger, and locks."""
