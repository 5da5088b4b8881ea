from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsyn.campaign.slurm import check, container
from medsyn.campaign.slurm import site as profiles
from medsyn.campaign.slurm.site import Site
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.config import Config, ModelPathsSection
from medsyn.errors import InputProblems, Problem
from tests.helpers.trial import Trial


@pytest.fixture
def campaign(trial: Trial) -> Campaign:
    return trial.prepare()


def site(image: Path, **values: Any) -> Site:
    return Site.model_validate({"container": {"image": str(image)}, **values})


def words(campaign: Campaign, profile: Site, stage: str = "finetune") -> list[str]:
    return container.python(profile, campaign, profile.resources(stage), container.task_environment(profile)).split()


def test_driver_is_bound_for_jobs_that_ask_for_a_gpu_and_for_no_other(campaign: Campaign, tmp_path: Path) -> None:
    image = tmp_path / "image.sif"
    assert "--nv" in words(campaign, site(image, gres="gpu:titanxp:1"))
    assert "--nv" in words(campaign, site(image, sbatch={"gpus_per_node": 1}))
    assert "--nv" in words(campaign, site(image, gres="shard:2"))
    assert "--nv" not in words(campaign, site(image, gres="gpu:1"), "gate")
    assert "--nv" not in words(campaign, site(image))
    assert "--nv" in words(campaign, Site.model_validate({"container": {"image": str(image), "nv": True}}))


def test_variables_of_the_site_win_over_the_image_and_those_of_the_container_over_both(
    campaign: Campaign, tmp_path: Path
) -> None:
    profile = Site.model_validate(
        {
            "environment": {"HF_HOME": "/scratch/hf", "OMP_NUM_THREADS": 4},
            "container": {"image": str(tmp_path / "image.sif"), "environment": {"HF_HOME": "/inner"}},
        }
    )
    given = words(campaign, profile)
    assert {"HF_HOME=/inner", "OMP_NUM_THREADS=4", "PYTHONNOUSERSITE=1", "PYTHONPATH=", "PYTHONHOME="} <= {
        word.strip("'") for word in given
    }
    assert "HF_HOME=/scratch/hf" not in given
    assert "OMP_NUM_THREADS=1" in words(campaign, site(tmp_path / "image.sif"))


def test_campaign_data_and_cache_are_bound_where_they_are(campaign: Campaign, tmp_path: Path) -> None:
    cache = tmp_path / "hf"
    profile = site(tmp_path / "image.sif", environment={"HF_HOME": str(cache)})
    folders = {str(campaign.directory.root), str(tmp_path / "data")}
    assert set(container.binds(campaign, profile)) == folders  # apptainer refuses to bind what is not there
    cache.mkdir()
    assert set(container.binds(campaign, profile)) == folders | {str(cache)}


def test_cache_that_the_submitter_names_reaches_the_inside(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    monkeypatch.setenv("HF_HOME", str(mine))
    given = words(campaign, site(tmp_path / "image.sif"))
    assert {str(mine), f"HF_HOME={mine}"} <= set(given)
    given = words(campaign, site(tmp_path / "image.sif", environment={"HF_HOME": str(other)}))
    assert {str(other), f"HF_HOME={other}"} <= set(given)  # the site's wins
    assert str(mine) not in given


def test_weights_of_a_hub_id_and_targets_of_links_are_bound(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's snapshot is links into the repository's blobs: both must be there inside."""
    repository = tmp_path / "hf" / "hub" / "models--somebody--diffusion"
    snapshot, blob = repository / "snapshots" / "abc", repository / "blobs" / "123"
    for folder in (snapshot, blob.parent, repository / "refs"):
        folder.mkdir(parents=True)
    blob.write_text("{}")
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "model_index.json").symlink_to("../../blobs/123")

    def bound(source: str) -> set[str]:
        config = campaign.config.model_copy(update={"model_paths": ModelPathsSection(stable_diffusion=source)})
        return set(container.binds(replace(campaign, config=config), site(tmp_path / "image.sif")))

    without = bound("embedded")
    assert bound(str(snapshot)) - without == {str(snapshot), str(blob.parent)}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    assert bound("somebody/diffusion") - without == {str(tmp_path / "hf" / "hub")}
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "hf").rename(tmp_path / ".cache" / "huggingface")
    moved = tmp_path / ".cache" / "huggingface" / "hub" / repository.name
    assert bound("somebody/diffusion") - without == {str(moved)}


def told_image(profile: Site, campaign: Campaign) -> str:
    """What a task of a job that is queued now will find as its image."""
    lines = [*container.export_image(profile, campaign), f'echo "${container.IMAGE_VARIABLE}"']
    return subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout.strip()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_image_is_named_by_its_hash_and_hashed_again_only_when_it_changed(campaign: Campaign, tmp_path: Path) -> None:
    image = tmp_path / "image.sif"
    image.write_bytes(b"one")
    assert told_image(site(image), campaign) == sha256(b"one")
    status = image.stat()
    image.write_bytes(b"two")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert told_image(site(image), campaign) == sha256(b"one")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert told_image(site(image), campaign) == sha256(b"two")
    for damage in ("torn", "[]", "{}"):
        campaign.directory.slurm("image.json").write_text(damage)
        assert told_image(site(image), campaign) == sha256(b"two")


def test_image_that_is_replaced_while_jobs_wait_is_named_by_its_own_hash(campaign: Campaign, tmp_path: Path) -> None:
    image = tmp_path / "my image.sif"
    image.write_bytes(b"one")
    lines = [*container.export_image(site(image), campaign), f'echo "${container.IMAGE_VARIABLE}"']
    image.write_bytes(b"another")
    told = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout
    assert told == sha256(b"another") + "\n"


def test_image_of_a_registry_and_that_of_pyxis_are_known_too(campaign: Campaign, tmp_path: Path) -> None:
    remote = Site.model_validate({"container": {"image": "docker://example.org/medsyn@sha256:12"}})
    assert told_image(remote, campaign) == "docker://example.org/medsyn@sha256:12"
    image = tmp_path / "medsyn.sqsh"
    image.write_bytes(b"three")
    for words in ([f"--container-image={image}"], ["--container-image", str(image)]):
        pyxis = Site.model_validate({"srun": words, "environment": {"A": "b"}})
        assert told_image(pyxis, campaign) == sha256(b"three")
        environment = container.task_environment(pyxis)
        assert (environment["A"], environment["PYTHONPATH"], environment["PYTHONSAFEPATH"]) == ("b", "", "1")
    assert container.export_image(Site(), campaign) == []
    assert container.task_environment(Site()) == {}


@pytest.mark.parametrize("option", ["--cleanenv", "-e", "--containall", "-C"])
def test_options_that_hide_what_slurm_says_are_refused(option: str, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(f"container: {{image: /image.sif, options: [{option}]}}\n")
    with pytest.raises(InputProblems, match="hides the SLURM_"):
        profiles.load(str(path))


def test_paths_that_cannot_be_bound_are_refused(tmp_path: Path) -> None:
    image, profile, table = tmp_path / "image.sif", tmp_path / "site.yaml", tmp_path / "a,b" / "metadata.csv"
    image.touch()
    table.parent.mkdir()
    table.touch()
    profile.write_text(f"container: {{image: {image}, runtime: no-such-runtime}}\n")
    values: dict[str, Any] = {"campaign": {"dir": str(tmp_path / "10:30")}, "data": {"table": str(table)}}
    values["data"]["linked_roots"] = [str(image.parent), str(table.parent)]
    config = Config.model_validate({**values, "cluster": {"site": str(profile)}})
    told = [(problem.key, problem.reason.partition(" contains")[0]) for problem in errors(config)]
    assert told == [
        ("campaign.dir", str(tmp_path / "10:30")),
        ("data.table", str(table)),
        ("data.linked_roots", str(table.parent)),
    ]
    profile.write_text("partition: gpu\n")
    assert errors(config) == []


def errors(config: Config) -> list[Problem]:
    return [problem for problem in check.read_site(config, asks_slurm=False)[1] if problem.severity == "error"]


def test_everything_wrong_with_image_and_binds_is_told_at_once(tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text(f"container: {{image: /no/such.sif, binds: ['{'x' * 300}:/y', '/no/folder:/z:ro']}}\n")
    config = Config.model_validate({"cluster": {"site": str(profile)}})
    told = [(problem.key, problem.reason) for problem in errors(config)]
    assert told == [
        ("container.image", "the image /no/such.sif does not exist"),
        ("container.binds", f"the bind source {'x' * 300} cannot be read: File name too long"),
        ("container.binds", "the bind source /no/folder does not exist"),
    ]


def test_pyxis_image_that_is_not_there_and_a_campaign_that_is_not_mounted(tmp_path: Path) -> None:
    profile, image = tmp_path / "site.yaml", tmp_path / "medsyn.sqsh"

    def told(srun: list[str]) -> list[tuple[str, str]]:
        profile.write_text(f"srun: {json.dumps(srun)}\n")
        values = {"campaign": {"dir": "/shared/runs/a"}, "cluster": {"site": str(profile)}}
        found = check.read_site(Config.model_validate(values), asks_slurm=False)[1]
        return [(problem.severity, problem.reason) for problem in found]

    mounted = "--container-mounts=/shared/data:/data:ro,/shared/runs:/shared/runs"
    assert told([f"--container-image={image}", mounted]) == [("error", f"the image {image} does not exist")]
    image.touch()
    assert told([f"--container-image={image}", mounted]) == []
    ((severity, reason),) = told([f"--container-image={image}", "--container-mounts=/shared/data:/shared/data"])
    assert severity == "warning" and reason.startswith("/shared/runs/a is in none of --container-mounts")


def test_an_option_of_srun_and_its_value_are_not_one_word(tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text("srun: ['--container-image /a.sqsh']\n")
    with pytest.raises(InputProblems, match=r"write '--container-image=/a\.sqsh'"):
        profiles.load(str(profile))
