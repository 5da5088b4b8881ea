from __future__ import annotations

from pathlib import Path

import pytest

from medsyn.campaign.slurm import sbatch, site
from medsyn.campaign.slurm.graph import Node
from medsyn.campaign.slurm.site import Site
from medsyn.errors import InputError, InputProblems
from tests.helpers.paths import ROOT

PROFILES = sorted((ROOT / "slurm").glob("*.yaml"))
NODE = Node("generate-ct", "tasks", "generate", ("a", "b", "c"))
GATE = Node("gate-finetune", "gate", "finetune", ("a",))


def profile(folder: Path, text: str) -> Site:
    path = folder / "site.yaml"
    path.write_text(text)
    return site.load(str(path))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_example_is_a_profile(path: Path) -> None:
    assert site.load(str(path)).partition


def test_a_stage_replaces_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    text = "partition: gpu\ntime: 60\nsbatch: {comment: x}\nstages: {generate: {time: 90, sbatch: {licenses: y}}}"
    chosen = sbatch.sbatch_options(profile(tmp_path, text), NODE)
    assert chosen["partition"] == "gpu"
    assert chosen["time"] == 90
    assert (chosen["comment"], chosen["licenses"]) == ("x", "y")


def test_a_gate_asks_for_no_gpu(tmp_path: Path) -> None:
    found = profile(tmp_path, "gres: gpu:1\nmem: 24G\nconstraint: pascal\npartition: gpu\n")
    assert sbatch.sbatch_options(found, GATE) == {"partition": "gpu", "cpus_per_task": 1, "time": 10, "requeue": True}
    assert sbatch.array_option(found, GATE) is None


def test_what_is_left_out_is_not_passed_on() -> None:
    assert sbatch.sbatch_options(Site(), NODE) == {"requeue": True}


def test_parallelism_is_the_arrays_own(tmp_path: Path) -> None:
    assert sbatch.array_option(profile(tmp_path, "array_parallelism: 2"), NODE) == "0-2%2"
    assert sbatch.array_option(Site(), NODE) == "0-2%3"


def test_bad_nodes_join_those_of_the_site(tmp_path: Path) -> None:
    assert sbatch.sbatch_options(profile(tmp_path, "exclude: n1"), NODE, ["n7"])["exclude"] == "n1,n7"


def test_options_are_shown_as_they_are_typed() -> None:
    assert sbatch.options_as_text({"cpus_per_task": 4, "requeue": True}) == "--cpus-per-task=4 --requeue"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("12:00:00", 720), ("2-12:00:00", 3600), ("1-6", 1800), ("0:30", 1), ("10:30", 11)],
)
def test_time_limits_as_slurm_writes_them(text: str, expected: int) -> None:
    assert site.minutes(text) == expected


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputProblems) as caught:
        profile(tmp_path, "partitoin: gpu\ntime: soon\ncpus_per_task: 0\nenvironment: {a b: c}\nstages: {train: {}}")
    told = str(caught.value)
    assert "partitoin: there is no such key; did you mean partition?" in told
    assert "'soon' is not a time limit" in told
    assert "cpus_per_task" in told
    assert "'a b' is not a valid name of an environment variable" in told
    assert "stages.train" in told
    assert "site.yaml" in told


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such site profile file"):
        site.load(str(tmp_path / "no.yaml"))


def test_no_profile_is_a_cluster_that_needs_to_be_told_nothing() -> None:
    assert site.load("") == Site()


@pytest.mark.parametrize("name", ["array", "job_name", "no-requeue", "signal", "parsable"])
def test_what_the_graph_stands_on_is_not_the_sites_to_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputProblems, match=f"sbatch: {name} is set by medsyn"):
        profile(tmp_path, f"sbatch: {{{name}: x}}")


def test_an_option_with_a_key_of_its_own_is_given_there(tmp_path: Path) -> None:
    with pytest.raises(InputProblems, match="cpus-per-task has its own key"):
        profile(tmp_path, "sbatch: {cpus-per-task: 4}")


def test_numbers_are_values_of_environment_variables(tmp_path: Path) -> None:
    found = profile(tmp_path, "environment: {OMP_NUM_THREADS: 4}")
    assert "export OMP_NUM_THREADS=4" in sbatch.before(tmp_path, found.environment, [], None)


@pytest.mark.parametrize(
    "text",
    [
        *("sbatch: {clusters: a}", "sbatch: {cluster: a}", "sbatch: {cluster_constraint: a}", "srun: [-Mother]"),
        *("srun: [--clusters=a]", "stages: {generate: {sbatch: {clust: a}}}"),
    ],
)
def test_another_cluster_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputProblems, match=r"one campaign runs on one cluster, .*: submit from a login node of the"):
        profile(tmp_path, text)


@pytest.mark.parametrize(("name", "why"), [("arra", "set by medsyn"), ("ntasks-per-n", "set by medsyn"), ("G", "long")])
def test_options_that_are_abbreviated_are_what_they_stand_for(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(InputProblems, match=why):
        profile(tmp_path, f"sbatch: {{{name}: x}}")


@pytest.mark.parametrize("name", sorted(site.OF_GPUS))
def test_a_gate_asks_for_no_gpu_however_the_site_asks_for_one(tmp_path: Path, name: str) -> None:
    found = profile(tmp_path, f"sbatch: {{{name}: 1, comment: x}}")
    assert sbatch.sbatch_options(found, GATE) == {"comment": "x", "cpus_per_task": 1, "time": 10, "requeue": True}
    assert sbatch.sbatch_options(found, NODE)[name.replace("-", "_")] == 1
    underscored = profile(tmp_path, f"sbatch: {{{name.replace('-', '_')}: 1}}")
    assert name.replace("-", "_") not in sbatch.sbatch_options(underscored, GATE)
    own = profile(tmp_path, f"sbatch: {{{name}: 1}}\nstages: {{gate: {{sbatch: {{{name}: 2}}}}}}")
    assert sbatch.sbatch_options(own, GATE)[name.replace("-", "_")] == 2
