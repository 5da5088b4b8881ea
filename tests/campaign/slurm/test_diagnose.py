"""What `medsyn doctor` says of Slurm, from what its commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsyn.campaign.slurm.diagnose import check_cluster
from medsyn.doctor.diagnosis import Diagnosis
from tests.helpers.fake_slurm import Slurm

SINFO = ("cpu|infinite|10|(null)", "gpu|2-00:00:00|4|gpu:titanxp:4(S:0-1)", "gpu|2-00:00:00|1|gpu:a40:2,shard:8")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    fake = Slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    fake.command("sbatch", "slurm 23.02.7")
    fake.command("sinfo", *SINFO)
    fake.command("scontrol", "AccountingStorageType   = accounting_storage/slurmdbd")
    return fake


def found() -> dict[str, Diagnosis]:
    return {finding.check: finding for finding in check_cluster()}


def test_a_cluster_is_described_and_no_job_is_queued(slurm: Slurm) -> None:
    told = found()
    assert {finding.verdict for finding in told.values()} == {"good"}
    assert told["slurm"].value == "slurm 23.02.7"
    gpus = "gpu: 4 x gpu:titanxp:4, time limit 2-00:00:00; gpu: 1 x gpu:a40:2, time limit 2-00:00:00"
    assert told["slurm partitions"].value == gpus
    assert told["slurm accounting"].value == "accounting_storage/slurmdbd"
    assert (slurm.folder / "sbatch.calls").read_text() == "--version\n--test-only --wrap true\n"


def test_a_cluster_without_gpus_and_accounting_is_noted(slurm: Slurm) -> None:
    slurm.command("sinfo", SINFO[0])
    slurm.command("scontrol", "AccountingStorageType   = (null)")
    told = found()
    assert (told["slurm partitions"].verdict, told["slurm partitions"].value) == ("note", "cpu; none has GPUs")
    assert (told["slurm accounting"].verdict, told["slurm takes jobs"].verdict) == ("note", "good")


def test_a_user_whose_job_would_be_refused_is_told_why(slurm: Slurm) -> None:
    slurm.command("sbatch", "allocation failure: Invalid account or account/partition combination specified")
    script = slurm.folder / "sbatch"
    script.write_text(script.read_text().replace("exit 0", '[ "$1" = --version ]'))
    refused = found()["slurm takes jobs"]
    assert (refused.verdict, "Invalid account" in refused.value) == ("note", True)
    assert "site profile" in refused.advice


def test_a_controller_that_is_away_is_a_note_and_no_slurm_is_good(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slurm.command("sinfo", code=1)
    assert "Unable to contact slurm controller" in [*check_cluster()][-1].value
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [(one.check, one.verdict) for one in check_cluster()] == [("slurm", "good")]
