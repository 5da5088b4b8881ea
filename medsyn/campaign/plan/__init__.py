"""What a configuration would run, and everything that is wrong with its inputs; then the campaign prepared."""
