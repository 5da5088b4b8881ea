"""The Selector and the Policy learn from experts: RLHF stages 1 and 2."""
