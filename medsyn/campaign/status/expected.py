"""What the cost model expects each stage to take; apart from the figures, which need no model."""

from __future__ import annotations

from medsyn.campaign import cost, machine
from medsyn.campaign.records import Campaign


def seconds(campaign: Campaign) -> dict[str, float]:
    """Seconds of all tasks of each stage, done ones included; empty for a campaign that did not record its tables."""
    if "images" not in campaign.counts:
        return {}
    found = cost.estimate(campaign.config, campaign.plan, campaign.counts, machine.expects_gpu(campaign.config))
    totals = dict.fromkeys(campaign.plan.by_stage, 0.0)
    for (stage, _), its in found.tasks.items():
        totals[stage] += its.seconds
    return totals
