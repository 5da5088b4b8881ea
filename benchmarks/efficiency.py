"""How much of the time that a campaign holds does it paint, where many small shards are interrupted?

    python benchmarks/efficiency.py                         # 40 shards, every tenth asked to leave (SIGTERM)
    python benchmarks/efficiency.py --shards 200 --parallel 2
    python benchmarks/efficiency.py --signal KILL           # every tenth killed instead

First all shards are made in one process that is not disturbed: what the tiny model allows without start-up. Then the
same shards are tasks of `--cluster local`, one process each, and every tenth of them gets a signal once it paints.
Printed is what became of every second, which adds up to 100 %, and the ratio of the two shares of UNet and VAE: in the
second run of all that its tasks held, in the first without start-up, loading and idle. Both make the same images.
Shares, because seconds differ by what else the machine does meanwhile; still, a loaded machine makes them poor.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launching import cluster
from rich.console import Console
from rich.table import Table

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign import guards
from medsyn.campaign.state import attempts
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.status import figures
from medsyn.campaign.status import read as status_read
from medsyn.campaign.tasks import Key
from medsyn.efficiency import IDLE, KINDS, REJECTED, REPEATED, UNET_VAE, Efficiency
from medsyn.time_use import LOADING, START_UP

BATCH, EVERY, POLL_SECONDS = 8, 10, 0.01
WORDS = [
    "data.modalities=[X-Ray]",
    "data.phantoms.images_per_kind=12",
    "data.phantoms.image_size=64",
    "generation.modes=[baseline]",
    "generation.img_num=1",
    f"generation.batch_size={BATCH}",
    "generation.blocks_per_shard=1",
    "device.cpu_threads=1",
]
_UNDISTURBED = """
import sys
from pathlib import Path
from medsyn.campaign import worker
from medsyn.campaign.state import campaign_file

campaign = campaign_file.open_campaign(Path(sys.argv[1]))
session = worker.Session(campaign, worker.STAGE_FUNCTIONS)
for planned in campaign.plan.by_stage["generate"]:
    assert session.run(planned) == 0
"""


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--batches", type=int, default=2, help="of 8 images in a shard (2)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (20)")
    parser.add_argument("--parallel", type=int, default=1, help="tasks at once in the second run (1)")
    parser.add_argument("--signal", choices=["TERM", "KILL"], default="TERM")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, many = (prepare(Path(folder) / name, args) for name in ("one", "many"))
        subprocess.run(
            [sys.executable, "-c", _UNDISTURBED, str(one.directory.root)], check=True, stdout=subprocess.DEVNULL
        )
        signalled = disturb(many, args.parallel, getattr(signal, f"SIG{args.signal}"))
        same = pictures(one) == pictures(many)
        alone, held = (figures.efficiency(status_read.read(campaign)) for campaign in (one, many))
    working = alone.allocated - sum(alone.seconds[kind] for kind in (START_UP, LOADING, IDLE))
    possible = alone.seconds[UNET_VAE] / working
    found = {
        "shards": args.shards,
        "signalled": signalled,
        "undisturbed": alone.as_dict(),
        "disturbed": held.as_dict(),
        "possible": possible,
        "ratio": held.shares[UNET_VAE] / possible,
        "same_images": same,
    }
    show(Console(), found, alone, held)
    if args.json:
        disk.write_json(args.json, found)
    return 0 if same else 1


def prepare(root: Path, args: argparse.Namespace) -> Campaign:
    """A campaign that has only images of the embedded model to make, in so many shards."""
    words = [*WORDS, f"generation.batches_per_block={args.batches}", f"generation.num_inference_steps={args.steps}"]
    words += [f"data.phantoms.prompts_per_kind={BATCH * args.batches * args.shards}", f"campaign.dir={root}"]
    campaign = guards.open_for_change(configuration.load(str(cluster.CONFIG), words), here=True)
    found = len(campaign.plan.by_stage["generate"])
    if found < args.shards:
        raise SystemExit(f"there are prompts for {found} shards only")
    return campaign


def disturb(campaign: Campaign, parallel: int, number: signal.Signals) -> int:
    """Run the shards as tasks on this machine; every tenth gets the signal once; return how many did."""
    words = ["launch.py", "resume", str(campaign.directory.root), "--cluster", "local", "--only", "generate"]
    command = [sys.executable, *words, "--max-parallel", str(parallel)]
    left = {planned.key for planned in campaign.plan.by_stage["generate"][EVERY // 2 :: EVERY]}
    wanted = len(left)
    with subprocess.Popen(command, cwd=cluster.ROOT, stdout=subprocess.DEVNULL) as launcher:
        while launcher.poll() is None:
            for key, process in painting(campaign, left):
                try:
                    os.kill(process, number)
                except ProcessLookupError:  # it has just ended: another one, then
                    continue
                left.discard(key)
            time.sleep(POLL_SECONDS)
    if launcher.returncode:
        raise SystemExit(f"the campaign ended with exit code {launcher.returncode}")
    return wanted - len(left)


def painting(campaign: Campaign, keys: set[Key]) -> Iterator[tuple[Key, int]]:
    """(task, process) of those that are in their first batch or a later one."""
    for key in list(keys):
        lines = attempts.attempt_lines(campaign.directory, key)
        if lines and lines[-1]["event"] == "start" and attempts.progress(campaign.directory, key):
            yield key, lines[-1]["pid"]


def pictures(campaign: Campaign) -> dict[str, Any]:
    """The hash of every image."""
    manifests = (campaign.directory.root / "work" / "generate").rglob("manifest.jsonl")
    return {line["id"]: line["sha256"] for manifest in manifests for line in disk.read_jsonl(manifest)}


def show(console: Console, found: dict[str, Any], alone: Efficiency, held: Efficiency) -> None:
    """Print the shares of both runs, and their ratio."""
    table = Table("", "one process", "", f"{found['shards']} tasks, {found['signalled']} interrupted", "")
    for kind, name in KINDS.items():
        if alone.seconds[kind] or held.seconds[kind] or kind in (UNET_VAE, REJECTED, REPEATED):
            cells = ((f"{its.seconds[kind]:.2f} s", f"{100 * its.shares[kind]:.1f} %") for its in (alone, held))
            table.add_row(name, *(cell for pair in cells for cell in pair))
    sums = ((f"{its.allocated:.2f} s", f"{100 * sum(its.shares.values()):.1f} %") for its in (alone, held))
    table.add_row("held", *(cell for pair in sums for cell in pair))
    console.print(table)
    console.print(
        f"UNet and VAE take {held.shares[UNET_VAE]:.3f} of what the second run held, and {found['possible']:.3f} "
        f"of the first without start-up, loading and idle: {found['ratio']:.3f} of what is possible; "
        f"images {'the same' if found['same_images'] else 'DIFFER'}",
        soft_wrap=True,
        highlight=False,
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} CPUs; load of the last 1, 5 and 15 minutes {load}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
