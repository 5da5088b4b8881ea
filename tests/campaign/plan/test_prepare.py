from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsyn import config as configuration
from medsyn import disk
from medsyn.__main__ import COMMANDS
from medsyn.campaign.plan import inputs, machine, prepare, show
from medsyn.campaign.state import campaign_file, locks
from medsyn.campaign.tasks import SCHEMA
from medsyn.cli import app
from medsyn.config import PHANTOMS, Config
from medsyn.data import read_images
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.models import model_folder
from medsyn.models.weights import embedded_directory
from medsyn.stage import CampaignDirectory
from tests.helpers.trial import Trial


def reasons(config: Config, severity: str = "error") -> str:
    return "\n".join(str(problem) for problem in inputs.check(config).problems if problem.severity == severity)


def prompts_of(trial: Trial) -> list[dict[str, str]]:
    files = sorted((trial.root / "inputs" / "prompts").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_the_tasks_read_a_configuration_with_nothing_left_to_look_up(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trial.data)
    campaign = trial.prepare(data__table="metadata.csv")
    data = configuration.load(campaign.directory.config).data
    assert data.table == str(trial.data / "metadata.csv")
    assert data.ratings_file == str(trial.data / "ratings.csv")
    assert data.prompts == str(trial.root / "inputs" / "prompts")


def test_a_plan_writes_nothing(trial: Trial) -> None:
    inputs.check(trial.config())
    assert not trial.root.exists()


def test_preparing_twice_reads_no_table_again_and_writes_nothing(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.prepare()
    before = {path: path.stat().st_mtime_ns for path in trial.root.rglob("*")}
    monkeypatch.setattr(inputs, "check", None)
    trial.prepare()
    assert {path: path.stat().st_mtime_ns for path in trial.root.rglob("*")} == before


def test_the_campaign_records_versions_and_what_results_depend_on(trial: Trial) -> None:
    trial.prepare()
    facts = disk.read_json(trial.root / "campaign.json")
    assert facts["schema"] == SCHEMA
    assert facts["medsyn"]
    assert facts["prompts"] == {"CT": [[2, 0]], "OCT": [[2, 0]]}
    assert facts["inputs"]["table"]["sha256"] == disk.sha256_file(trial.data / "metadata.csv")
    assert set(facts["fingerprints"]) == {"finetune", "rlhf-stage1", "rlhf-stage2", "generate", "evaluate"}


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # no weights
    (trial.data / "ratings.csv").unlink()
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("gone.png,CT: a text,CT\nct-1.png,CT: a text,PET\n")
    config = trial.config(model_paths__stable_diffusion="/no/such/model", data__prompts=str(trial.data / "no.csv"))
    with pytest.raises(InputProblems) as caught:
        trial.prepare_config(config)
    said = str(caught.value)
    for part in ("/no/such/model", "ratings.csv, data.ratings_file", "gone.png", "PET", "no.csv", "line 10", "line 11"):
        assert part in said
    assert not trial.root.exists()


def test_rows_with_problems_are_left_out_and_told_where_the_user_says_so(trial: Trial) -> None:
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("gone.png,CT: a text,CT\n")
    config = trial.config(data__strict=False)
    assert "gone.png" in reasons(config, "warning")
    assert reasons(config) == ""


def test_modalities_without_rows_are_named(trial: Trial) -> None:
    said = reasons(trial.config(data__modalities=["CT", "MRI", "Fundus"]))
    assert "metadata.csv: it has no rows of MRI, Fundus" in said
    assert "ratings.csv, data.ratings_file: it has no ratings of MRI, Fundus" in said
    assert "there is no prompt for MRI, Fundus" in reasons(
        trial.config(data__modalities=["CT", "MRI", "Fundus"]), "warning"
    )


def test_a_modality_without_ratings_is_no_error_where_there_is_no_stage_2(trial: Trial) -> None:
    ratings = trial.data / "ratings.csv"
    ratings.write_text("".join(line for line in ratings.read_text().splitlines(True) if "OCT" not in line))
    assert "no ratings of OCT" in reasons(trial.config())
    assert reasons(trial.config(training__stage=1, generation__quality_threshold=0.5)) == ""
    assert "no ratings of OCT" in reasons(trial.config(training__stage=1, data__modalities=["OCT"]))


def test_ratings_that_are_all_alike_cannot_train_a_selector(trial: Trial) -> None:
    ratings = trial.data / "ratings.csv"
    ratings.write_text(ratings.read_text().replace(",3,CT", ",1,CT").replace(",3,OCT", ",1,OCT"))
    assert "cannot train the Selector" in reasons(trial.config())


def test_prompts_of_other_modalities_are_left_out(trial: Trial) -> None:
    campaign = trial.prepare(data__modalities=["CT"])
    assert {row["modality"] for row in prompts_of(trial)} == {"CT"}
    assert [task.task.name for task in campaign.plan.by_stage["generate"]] == ["ct-00000"]


def test_without_a_prompt_list_some_captions_are_the_prompts_the_same_ones_every_time(trial: Trial) -> None:
    (trial.data / "prompts.csv").unlink()
    rows = [f"ct-{number % 4}.png,CT: finding {number % 30},CT" for number in range(60)]
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("\n".join(rows) + "\n")
    campaign = trial.prepare()
    texts = [row["prompt"] for row in prompts_of(trial)]
    assert len(texts) == len(set(texts)) == inputs.CAPTIONS_PER_MODALITY + 4
    assert len(inputs.check(trial.config()).plan.by_stage["generate"]) == len(campaign.plan.by_stage["generate"]) == 6
    index = trial.root / "inputs" / "prompts" / "index.json"
    assert inputs.check(trial.config()).prompts.index.text() == index.read_text()


def test_a_text_file_of_prompts_becomes_a_table(trial: Trial) -> None:
    path = trial.data / "wanted.txt"
    path.write_text("# two\nCT: one\n\nOCT: two\n")
    trial.prepare(data__prompts=str(path))
    assert [(row["prompt"], row["modality"]) for row in prompts_of(trial)] == [("CT: one", "CT"), ("OCT: two", "OCT")]
    assert all(row["id"] for row in prompts_of(trial))


def test_one_prompt_instead_of_a_list(trial: Trial) -> None:
    campaign = trial.prepare(data__base_prompt="Chest CT: a nodule", generation__img_num=5)
    assert [(row["prompt"], row["modality"]) for row in prompts_of(trial)] == [("Chest CT: a nodule", "CT")]
    assert [task.task.blocks for task in campaign.plan.by_stage["generate"]] == [(0, 1), (1, 2), (2, 3)]


def test_one_prompt_must_say_its_modality_unless_there_is_just_one(trial: Trial) -> None:
    assert "its modality is not clear" in reasons(trial.config(data__base_prompt="a nodule"))
    assert reasons(trial.config(data__base_prompt="a nodule", data__modalities=["CT"])) == ""
    both = trial.config(data__base_prompt="CT: a nodule", data__prompts=str(trial.data / "prompts.csv"))
    assert "keep one of the two" in reasons(both)


def test_a_folder_that_cannot_be_written_to_is_told(trial: Trial) -> None:
    (trial.data.parent / "campaign").write_text("a file is here")
    assert "campaign.dir" in reasons(trial.config())


def refused(trial: Trial, **overrides: Any) -> str:
    with pytest.raises(InputProblems) as caught:
        trial.prepare(**overrides)
    return str(caught.value)


def test_what_is_made_cannot_be_changed_and_the_keys_are_named(trial: Trial) -> None:
    trial.prepare()
    trial.work("finetune", "ct")
    said = refused(trial, finetune__learning_rate=1e-4, data__resolution=128, generation__guidance_scale=3.0)
    how = "was 1e-05 and is now 0.0001, but this campaign has results of finetune"
    assert f"configuration, finetune.learning_rate: {how}" in said
    assert "data.resolution" in said
    assert "guidance_scale" not in said  # nothing has been generated yet
    assert trial.campaign().config.finetune.learning_rate == 1e-5
    trial.prepare(generation__guidance_scale=3.0)
    assert "finetune ct" in trial.done()


def test_what_is_not_made_yet_can_be_changed(trial: Trial) -> None:
    trial.prepare()
    campaign = trial.prepare(finetune__learning_rate=1e-4, data__modalities=["CT"], campaign__seed=3)
    assert campaign.config.finetune.learning_rate == 1e-4
    assert trial.work("finetune", "ct")[0] == 0


def test_how_it_runs_can_always_be_changed(trial: Trial) -> None:
    trial.prepare()
    for planned in trial.campaign().plan:
        trial.work(*planned.key)
    trial.prepare(cluster__max_requeues=3)
    campaign = trial.campaign()
    assert campaign.config.cluster.max_requeues == 3
    assert len(trial.done()) == len(campaign.plan.tasks)


def test_another_evaluation_is_made_of_the_same_results(trial: Trial) -> None:
    trial.prepare()
    for planned in trial.campaign().plan:
        trial.work(*planned.key)
    campaign = trial.prepare(evaluation__kid_subsets=3)
    assert len(campaign.plan.tasks) - len(trial.done()) == 1


def test_a_fine_tuning_at_a_constant_rate_may_be_lengthened_until_something_is_made_with_it(trial: Trial) -> None:
    before = trial.prepare()
    trial.work("finetune", "ct")
    after = trial.prepare(finetune__max_train_steps=3000)
    assert after.fingerprints["finetune"] != before.fingerprints["finetune"], "so its tasks are not done"
    assert "was 3000 and is now 2999, but" in refused(trial, finetune__max_train_steps=2999)
    (trial.root / "work/generate/baseline").mkdir(parents=True)
    said = refused(trial, finetune__max_train_steps=4000)
    assert "finetune.max_train_steps: was 3000 and is now 4000, but this campaign has results of generate: " in said


def test_one_with_a_cosine_may_not_and_why_is_said(trial: Trial) -> None:
    cosine = {"finetune__lr_scheduler": "cosine"}
    trial.prepare(**cosine)
    trial.work("finetune", "ct")
    said = refused(trial, **cosine, finetune__max_train_steps=3000)
    assert "was 2000 and is now 3000, and with lr_scheduler=cosine the rate of every step depends on it" in said


def test_nor_one_that_keeps_the_best(trial: Trial) -> None:
    best = {"finetune__keep_best": True, "finetune__validate_every": 5, "data__held_out_fraction": 0.5}
    trial.prepare(**best)
    trial.work("finetune", "ct")
    said = refused(trial, **best, finetune__max_train_steps=3000)
    assert "was 2000 and is now 3000, and with keep_best what came after the best is not kept, but" in said


@pytest.mark.parametrize(
    ("file", "task", "key"),
    [("metadata.csv", "finetune ct", "data.table"), ("ratings.csv", "rlhf-stage1 all", "data.ratings_file")],
)
def test_a_table_with_other_content_is_a_changed_key(trial: Trial, file: str, task: str, key: str) -> None:
    trial.prepare()
    trial.work(*task.split())
    lines = (trial.data / file).read_text().splitlines()
    (trial.data / file).write_text("\n".join(lines[:-1]) + "\n")
    assert f"configuration, {key}: has changed, but this campaign has results of {task.split()[0]}" in refused(trial)


def test_a_table_of_pairs_is_checked_and_is_part_of_what_scorers_depend_on(trial: Trial) -> None:
    pairs = trial.data / "pairs.csv"
    given = {"data__pairs_file": str(pairs)}
    assert "pairs.csv, data.pairs_file: there is no such file; null: the scorers learn from ratings alone" in reasons(
        trial.config(**given)
    )
    pairs.write_text("image_a,image_b,preferred,prompt\nct-0.png,ct-1.png,b,CT: x\nct-1.png,gone.png,left,CT: x\n")
    said = reasons(trial.config(**given))
    assert "line 3" in said and "gone.png" in said and "'left' is not a, b, same or neither" in said
    pairs.write_text("image_a,image_b,preferred,prompt\nct-0.png,ct-1.png,b,CT: x\n")
    with_pairs = trial.prepare(**given)
    assert with_pairs.inputs["pairs"].path == str(pairs)
    trial.work("finetune", "ct")
    trial.prepare()  # finetuning does not read it
    trial.prepare(**given)
    trial.work("rlhf-stage1", "all")
    pairs.write_text(pairs.read_text().replace(",b,", ",a,"))
    assert "configuration, data.pairs_file: has changed, but this campaign has results of rlhf-stage1" in refused(
        trial, **given
    )
    assert "data.pairs_file" in refused(trial)  # nor can it be left out now


def test_other_prompts_are_refused_once_there_are_images_and_not_before(trial: Trial) -> None:
    trial.prepare()
    trial.work("finetune", "ct")
    trial.write_tables(prompts=3)
    assert len(trial.prepare().plan.by_stage["generate"]) == 4
    for planned in trial.campaign().plan:
        trial.work(*planned.key)
    trial.write_tables(prompts=4)
    assert "data.prompts: has changed" in refused(trial)


def test_the_same_tables_elsewhere_are_the_same_campaign(trial: Trial) -> None:
    trial.prepare()
    trial.work("finetune", "ct")
    moved = trial.data.rename(trial.data.with_name("moved"))
    trial.prepare(data__table=str(moved / "metadata.csv"))
    assert trial.done() == {"finetune ct"}


@pytest.mark.parametrize(
    "lost", ["config.yaml", "inputs/prompts/index.json", "inputs/prompts/ct.jsonl", "campaign.json"]
)
def test_a_submission_that_was_killed_before_it_was_ready_is_made_again(trial: Trial, lost: str) -> None:
    trial.prepare()
    trial.work("finetune", "ct")
    (trial.root / lost).unlink()
    campaign_file.claim(CampaignDirectory(trial.root))
    trial.prepare()
    assert trial.done() == {"finetune ct"}


def test_a_first_submission_may_be_killed_at_any_time(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (
        (campaign_file, "claim"),
        (disk, "write_atomic"),
        (configuration, "save"),
        (campaign_file, "write_record"),
    ):
        with monkeypatch.context() as killed:
            killed.setattr(*place, None)
            with pytest.raises(TypeError):
                trial.prepare()
    trial.prepare()
    assert trial.campaign().plan.tasks


@pytest.mark.parametrize("name", ["config.yaml", "ledger.jsonl", "inputs/prompts/index.json", ".hidden"])
def test_a_folder_with_files_of_the_users_is_left_alone(trial: Trial, name: str) -> None:
    path = trial.root / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert "holds files but no campaign" in reasons(trial.config())
    said = refused(trial)
    assert "choose another campaign.name or campaign.dir" in said
    assert "delete" not in said
    assert [one for one in trial.root.rglob("*") if one.is_file()] == [path]
    assert path.read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 1}', '{"name": "mine"}', "null", "\x00\xff"])
def test_a_damaged_record_is_told(trial: Trial, content: str) -> None:
    trial.prepare()
    (trial.root / "campaign.json").write_bytes(content.encode("latin-1"))
    for read in (trial.campaign, trial.prepare):
        with pytest.raises(InputError, match=r"campaign.json: is damaged, or was not written by medsyn"):
            read()
    assert "damaged" in "".join(map(str, prepare.check(trial.config()).errors))


@pytest.mark.parametrize("key", ["config", "inputs", "fingerprints", "prompts", "weights"])
def test_a_record_that_lacks_something_is_damaged(trial: Trial, key: str) -> None:
    trial.prepare()
    path = trial.root / "campaign.json"
    path.write_text(json.dumps({name: value for name, value in disk.read_json(path).items() if name != key}))
    with pytest.raises(InputError, match="damaged"):
        trial.campaign()


def test_a_plan_tells_what_a_submission_would_refuse(trial: Trial) -> None:
    trial.prepare()
    trial.work("finetune", "ct")
    with (trial.data / "metadata.csv").open("a") as stream:
        stream.write("ct-0.png,CT: another,CT\n")
    said = "\n".join(map(str, prepare.check(trial.config(finetune__learning_rate=1e-4)).errors))
    how = "was 1e-05 and is now 0.0001, but this campaign has results of finetune"
    assert f"finetune.learning_rate: {how}" in said
    assert "data.table: has changed" in said


def test_a_folder_that_cannot_be_made_is_told(trial: Trial) -> None:
    with pytest.raises(InputError, match=r"campaign.dir: /proc/nope cannot be created"):
        trial.prepare(campaign__dir="/proc/nope")


def of_patients(trial: Trial, patients: Sequence[str]) -> Config:
    """The trial, its images those of these patients (over and over)."""
    table = trial.data / "metadata.csv"
    header, *lines = table.read_text().splitlines()
    given = [f"{line},{patients[number % len(patients)]}" for number, line in enumerate(lines)]
    table.write_text("\n".join([f"{header},Subject ID", *given]) + "\n")
    return trial.config()


def test_patients_are_what_is_held_out(trial: Trial) -> None:
    config = of_patients(trial, ["one"])
    told = "data.held_out_fraction: no image of CT (4) is held out, because they are all of one patient"
    assert told in reasons(config, "warning") and reasons(config) == ""


def test_a_share_that_patients_do_not_allow_is_told(trial: Trial) -> None:
    told = reasons(of_patients(trial, ["one", "two"]), "warning")
    assert "2 of 4 images of CT are held out instead of 1" in told and "only 2 patients" in told


@pytest.mark.parametrize(("fraction", "table"), [(0.2, "images"), (0.5, "images"), (0.02, PHANTOMS), (0.05, PHANTOMS)])
def test_too_few_held_out_images_for_a_validation_are_refused(trial: Trial, fraction: float, table: str) -> None:
    """4 images, or the 60 phantoms that are still to be drawn."""
    options: dict[str, Any] = {"data__held_out_fraction": fraction}
    if table == PHANTOMS:
        options |= {"data__table": PHANTOMS, "data__modalities": ["OCT"], "data__phantoms": {"images_per_kind": 60}}
    told = "data.held_out_fraction: validation needs at least 2 held-out images of each modality, and there are 1 of "
    assert (told in reasons(trial.config(**options, finetune__validate_every=5))) == (fraction in (0.2, 0.02))
    assert told not in reasons(trial.config(**options))


def test_one_model_for_all_needs_two_held_out_images_in_all(trial: Trial) -> None:
    options = {"data__held_out_fraction": 0.2, "finetune__validate_every": 5}
    assert "held-out images of each modality" in reasons(trial.config(**options))
    assert reasons(trial.config(**options, finetune__together=True)) == ""


def test_the_plan_says_what_one_model_for_all_sees(trial: Trial) -> None:
    checked = inputs.check(trial.config(finetune__together=True, finetune__max_train_steps=80))
    (line,) = show.together(checked)
    assert line == (
        "finetune: one model for all modalities (finetune.together); the samples of its 80 steps are 50 % CT, 50 % OCT"
    )
    assert list(show.together(inputs.check(trial.config()))) == []


def test_one_for_each_is_not_made_one_for_all_once_there_are_results(trial: Trial) -> None:
    trial.prepare()
    assert trial.prepare(finetune__together=True).plan.by_stage["finetune"][0].task.name == "all"
    trial.work("finetune", "all")
    with pytest.raises(InputProblems, match=r"finetune\.together: was True and is now False, but this campaign has"):
        trial.prepare()


def test_a_table_without_patients_is_warned_about_unless_every_image_is_of_another(trial: Trial) -> None:
    assert "it has no patient column" in reasons(trial.config(), "warning")
    assert reasons(trial.config(data__patient_column="path"), "warning") == ""
    assert "data.patient_column" in reasons(trial.config(data__patient_column="nobody"))


@pytest.mark.parametrize(("every", "is_told"), [(None, False), (1999, False), (2000, True), (5000, True)])
def test_unets_that_are_to_be_kept_and_never_would_be_are_told(trial: Trial, every: Any, is_told: bool) -> None:
    said = reasons(trial.config(finetune__keep_every=every), "warning")
    expected = f"finetune.keep_every: it is {every}, and there are 2000 steps: nothing is kept"
    assert (expected in said) == is_told == ("nothing is kept" in said)


def test_warnings_are_handed_over(trial: Trial) -> None:
    warnings: list[Problem] = []
    trial.prepare_config(trial.config(), warn=warnings.extend)
    assert {problem.severity for problem in warnings} == {"warning"}
    assert "no patient column" in str(warnings[0])


def test_a_run_here_finds_the_gpus_that_are_here(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible_gpus", lambda: [])
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/sbatch")
    plain, card = (trial.config(device__use_cuda=True, cluster__gpu_memory_gib=size) for size in (None, 24.0))
    estimates = {here: inputs.check(plain, here=here).estimate.on_gpu for here in (True, False)}
    assert estimates == {True: False, False: True}
    checked = inputs.check(card, here=True)  # a plan for another machine
    assert checked.estimate.on_gpu
    assert "no NVIDIA GPU is visible here, and estimates are for a card of 24 GiB" in "\n".join(
        map(str, checked.problems)
    )
    assert machine.check_here(plain) == machine.check_here(trial.config(device__use_cuda=False)) == []
    monkeypatch.setattr(machine, "visible_gpus", lambda: ["0"])
    assert inputs.check(plain, here=True).estimate.on_gpu
    assert machine.check_here(card) == []


def test_more_gpus_than_there_are_is_told_before_anything_runs(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(machine, "visible_gpus", lambda: ["0"])
    wanted = trial.config(device__use_cuda=True, finetune__gpus=2)
    assert "finetune.gpus: it is 2, and 1 NVIDIA GPU can be seen here: use 1, or auto" in reasons(wanted)
    assert reasons(trial.config(device__use_cuda=True, finetune__gpus="auto")) == ""
    assert reasons(trial.config(device__use_cuda=False, finetune__gpus=2)) == ""
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/sbatch")
    assert reasons(wanted) == ""  # they are elsewhere
    assert "it is 2" in str(machine.check_here(wanted)[0])  # but for a run here
    monkeypatch.setattr(machine, "visible_gpus", lambda: ["0", "1"])
    assert machine.check_here(wanted) == []


def test_adapters_that_do_not_fit_the_unet_are_known_before_anything_runs(trial: Trial) -> None:
    assert reasons(trial.config(finetune__lora={"rank": 4})) == ""
    said = reasons(trial.config(finetune__lora={"rank": 65, "targets": ["to_k", "nowhere"]}))
    assert "finetune.lora.rank: 65 is over the width of " in said
    assert "finetune.lora.targets: no linear layer of the UNet is named nowhere; their names end in " in said
    assert "to_out.0" in said


def test_missing_packages_and_gpus_are_known_before_anything_runs(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "visible_gpus", lambda: [])
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    wanted = {"finetune__use_8bit_adam": True, "finetune__enable_xformers": True, "device__use_cuda": True}
    wanted |= {"device__compile": True}
    said = reasons(trial.config(**wanted, training__report_to="tensorboard"))
    assert "training.report_to: tensorboard is not installed here: install it, or set this to null" in said
    assert "training.report_to: wandb is not installed here: install it" in reasons(
        trial.config(training__report_to="wandb")
    )
    assert "finetune.use_8bit_adam: bitsandbytes is not installed" in said
    assert "finetune.enable_xformers: xformers is not installed" in said
    assert "finetune.use_8bit_adam: it needs a GPU, but no NVIDIA GPU is visible" in said
    assert "device.compile: it needs a GPU, but no NVIDIA GPU is visible: set it to false" in said
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(machine, "visible_gpus", lambda: ["0"])
    assert reasons(trial.config(**wanted)) == ""
    assert "device.use_cuda is false" in reasons(trial.config(**{**wanted, "device__use_cuda": False}))
    monkeypatch.setattr(machine, "visible_gpus", lambda: [])
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/sbatch")  # the GPUs are elsewhere
    assert reasons(trial.config(**wanted)) == ""


def test_the_micro_batch_may_change_and_the_batch_of_a_step_may_not(trial: Trial) -> None:
    sizes = {"finetune__train_batch_size": 2, "finetune__gradient_accumulation_steps": 2}
    trial.prepare(**sizes)
    trial.work("finetune", "ct")
    trial.prepare(finetune__train_batch_size=1, finetune__gradient_accumulation_steps=4, finetune__gpus=2)
    assert trial.done() == {"finetune ct"}
    said = refused(trial, **sizes | {"finetune__train_batch_size": 4})
    assert "finetune.global_batch: the batch of a step (train_batch_size x gradient_accumulation_steps) was 4" in said


def test_a_kill_between_configuration_and_record_loses_no_key(trial: Trial) -> None:
    """config.yaml is new, campaign.json old: what changed is still compared with what was made."""
    trial.prepare()
    trial.work("finetune", "ct")
    new = inputs.resolve(trial.config(finetune__learning_rate=1e-4))
    (trial.root / "config.yaml").write_text(configuration.save(new))
    assert "finetune.learning_rate" in refused(trial, finetune__learning_rate=1e-4)
    trial.prepare()
    assert trial.done() == {"finetune ct"}


def test_a_campaign_in_another_format_is_refused(trial: Trial) -> None:
    trial.prepare()
    path = trial.root / "campaign.json"
    path.write_text(json.dumps(disk.read_json(path) | {"schema": 0}))
    with pytest.raises(ValueError, match="in another format"):
        trial.prepare()


def test_a_changed_configuration_waits_for_the_run_at_work(trial: Trial) -> None:
    trial.prepare()
    with locks.exclusive(trial.root / "ledger.jsonl"), pytest.raises(locks.Busy):
        trial.prepare(campaign__seed=5)


def test_a_plan_says_what_is_done(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    keys = list(trial.prepare_short().plan.by_key)

    def plan(*overrides: str) -> list[str]:
        assert app.dispatch("medsyn", COMMANDS, ["plan", str(trial.root), "--cluster=local", *overrides]) == 0
        return capsys.readouterr().out.splitlines()

    assert not any("done;" in line or "are done:" in line for line in plan())
    trial.work(*keys[0])
    (line,) = [line for line in plan() if line.startswith("1 of 4 tasks are done; ")]
    assert line.endswith(" of the time is for the others")
    for key in keys[1:]:
        trial.work(*key)
    lines = plan()
    assert "all 4 tasks are done: nothing is left to do" in lines
    assert lines[-1].endswith(f" status {trial.root}")
    assert plan("evaluation.kid_subsets=7")[-1].endswith(
        " submit " + f"{trial.root} evaluation.kid_subsets=7 --cluster local"
    )
    app.dispatch("medsyn", COMMANDS, ["plan", str(trial.root), "--cluster=local", "--json"])
    assert json.loads(capsys.readouterr().out)["done"] == 4


class TestImages:
    @pytest.fixture
    def pictures(self, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> Trial:
        monkeypatch.undo()
        monkeypatch.setattr(model_folder, "problems", lambda source: [])
        noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
        for path in trial.data.glob("*.png"):
            Image.fromarray(noise).save(path)
        return trial

    def test_images_are_read(self, pictures: Trial) -> None:
        assert reasons(pictures.config()) == ""
        (pictures.data / "ct-2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        assert "metadata.csv, line 4, path: 'ct-2.png'" in reasons(pictures.config())
        assert "'ct-2.png'" in reasons(pictures.config(data__strict=False), "warning")

    def test_of_a_large_data_set_they_are_not_and_the_user_is_told_what_does(
        self, pictures: Trial, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inputs, "IMAGES_READ_AT_MOST", 5)
        monkeypatch.setattr(read_images, "read_image", None)
        assert "`medsyn check" in reasons(pictures.config(), "warning")


def test_texts_are_measured_with_the_models_own_tokenizer(trial: Trial) -> None:
    """By the estimate none of these is too long; the embedded model's vocabulary has no such word."""
    long = "kidneys " * 50
    for name, row in {"metadata.csv": f"ct-0.png,CT: {long},CT", "prompts.csv": f"CT: {long},CT"}.items():
        with (trial.data / name).open("a") as stream:
            stream.write(row + "\n")
    told = reasons(trial.config(), "warning")
    assert told.count("tokens, and the model's text encoder reads 77 (with those of begin and end)") == 2
    assert "an estimate" not in told
    assert "tokens" not in reasons(trial.config(data__text_chunks=4), "warning"), "what is read is not warned of"
    away = reasons(trial.config(model_paths__stable_diffusion="no/such/model"), "warning")
    assert "tokens" not in away


def test_a_base_that_was_trained_on_more_of_each_text_is_told(trial: Trial, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(embedded_directory(), base)
    (base / "facts.json").write_text('{"data.text_chunks": 3}')
    said = "data.text_chunks: the model of model_paths.stable_diffusion was fine-tuned with 3"
    assert said in reasons(trial.config(model_paths__stable_diffusion=str(base)), "warning")
    same = trial.config(model_paths__stable_diffusion=str(base), data__text_chunks=3)
    assert "text_chunks" not in reasons(same, "warning")


def test_rare_captions_where_none_is_rare_are_told(trial: Trial) -> None:
    said = "finetune.rare_captions: no caption is twice as frequent as another of its modality"
    assert said in reasons(trial.config(finetune__rare_captions=4), "warning")
    assert said not in reasons(trial.config(), "warning")
    with (trial.data / "metadata.csv").open("a") as stream:
        for name in ("ct-0.png", "ct-1.png"):
            stream.write(f"{name},CT: a caption of two images,CT\n")
    assert said not in reasons(trial.config(finetune__rare_captions=4), "warning")


def test_a_judge_that_will_know_nothing_is_told(trial: Trial) -> None:
    said = "data.held_out_fraction: an alignment's judge compares with held-out images"
    assert said in reasons(trial.config(align__enabled=True), "warning")
    assert said not in reasons(trial.config(), "warning")


class TestPhantoms:
    @pytest.fixture
    def small(self) -> dict[str, Any]:
        size = {"images_per_kind": 4, "prompts_per_kind": 3, "image_size": 64}
        return {"data__table": "phantoms", "data__phantoms": size, "data__modalities": ["CT", "MRI"]}

    def test_they_are_planned_without_being_drawn(self, trial: Trial, small: dict[str, Any]) -> None:
        checked = inputs.check(trial.config(**small))
        assert checked.counts["prompts"] == {"CT": 3, "MRI": 6}
        assert not trial.root.exists()

    def test_a_list_of_ones_own_is_checked_before_they_are_drawn(self, trial: Trial, small: dict[str, Any]) -> None:
        said = reasons(trial.config(**small, data__prompts="no.csv", data__ratings_file="none.csv"))
        assert "no.csv" in said
        assert "none.csv, data.ratings_file: there is no such file" in said
        assert "its modality is not clear" in reasons(trial.config(**small, data__base_prompt="a nodule"))
        own = trial.config(**small, data__prompts=str(trial.data / "prompts.csv"))
        checked = inputs.check(own)
        assert {what: dict(counts) for what, counts in checked.counts.items()} == {
            "images": {"CT": 4, "MRI": 8},
            "rated images": {"CT": 4, "MRI": 8},
            "ratings": {},
            "prompts": {"CT": 2},
            "asked": {"CT": 2},
            "guided": {"CT": 50},
            "plain": {"CT": 0},
        }
        assert checked.plan.tasks == trial.prepare_config(own).plan.tasks

    def test_they_are_drawn_once_and_what_was_planned_is_what_there_is(
        self, trial: Trial, small: dict[str, Any]
    ) -> None:
        planned = inputs.check(trial.config(**small))
        told: list[tuple[str, int, int]] = []
        campaign = trial.prepare_config(trial.config(**small), lambda *progress: told.append(progress))
        assert campaign.plan.tasks == planned.plan.tasks
        assert told[-1][0] == "drawing phantoms"
        assert told[-1][1] == told[-1][2]
        drawn_counts = inputs.check(trial.config(**small)).counts
        assert sum(drawn_counts.pop("ratings").values()) >= 12  # some images have a second rater
        assert drawn_counts == {what: counts for what, counts in planned.counts.items() if what != "ratings"}
        drawn = {path: path.stat().st_mtime_ns for path in (trial.root / "phantoms").rglob("*")}
        trial.prepare(**small, cluster__max_parallel=1)
        assert {path: path.stat().st_mtime_ns for path in (trial.root / "phantoms").rglob("*")} == drawn

    def test_a_killed_drawing_is_swept_and_done_again(self, trial: Trial, small: dict[str, Any]) -> None:
        left = trial.root / ".phantoms.tmp-elsewhere-1"
        left.mkdir(parents=True)
        trial.prepare(**small)
        assert not left.exists()

    def test_others_are_refused_by_name(self, trial: Trial, small: dict[str, Any]) -> None:
        trial.prepare(**small)
        more = {**small, "data__phantoms": small["data__phantoms"] | {"images_per_kind": 5}}
        how = "was 4 and is now 5, but this campaign has results of phantoms"
        assert f"data.phantoms.images_per_kind: {how}" in refused(trial, **more)


def test_a_large_campaign_opens_quickly(trial: Trial) -> None:
    trial.prepare(generation__img_num=10_000, generation__batch_size=1)
    started = time.monotonic()
    campaign = campaign_file.open_campaign(trial.root)
    assert len(campaign.plan.by_stage["generate"]) == 40_000
    assert time.monotonic() - started < 30  # half a second where nothing else runs


def test_nothing_of_a_patient_is_written_down(trial: Trial) -> None:
    table = trial.data / "metadata.csv"
    lines = table.read_text().splitlines()
    table.write_text(
        "\n".join([f"{lines[0]},patient_id", *(f"{line},SECRET-{n}" for n, line in enumerate(lines[1:]))]) + "\n"
    )
    trial.prepare()
    for path in trial.root.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes()


def test_a_campaign_is_private_to_user_and_group(trial: Trial) -> None:
    trial.prepare()
    trial.work("finetune", "ct")
    for path in [trial.root, *trial.root.rglob("*.*")]:
        assert path.stat().st_mode & 0o007 == 0, path
