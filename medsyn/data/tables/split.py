"""Which images are held out from training: a pure function of a key, so no list of names is kept."""

from __future__ import annotations

from medsyn.seeds import seed

LESS_HELD_OUT = "lower it, or add images of more patients"  # what to do if nothing is left to train on


def is_held_out(key: str, fraction: float, campaign_seed: int) -> bool:
    """Whether everything under `key` is held out.

    Args:
        key: what must stay together: the patient if known, else the file as the table names it (a
            relative name, so that moving the data does not change the split).
        fraction: expected share of held-out keys, 0 to 1.
        campaign_seed: another seed is another split.
    """
    return seed("held out", campaign_seed, key) < fraction * 2**63
