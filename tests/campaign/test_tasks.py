from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from medsyn import config as configuration
from medsyn.campaign.tasks import READS, Key, Plan, Result, build, reads_key, settle, stage_fingerprints
from medsyn.config import GLOBAL_BATCH, Config, flatten
from medsyn.errors import InputError
from medsyn.stage import STAGES

INPUTS = {"table": "t", "ratings": "r", "prompts": "p", "weights": "w"}


def config(**sections: dict[str, object]) -> Config:
    return configuration.validate({"data": {"modalities": ["CT", "X-Ray"]}, **sections}, "test")


def plan(images: dict[str, list[int]] | None = None, **generation: object) -> Plan:
    size = generation.pop("blocks_per_shard", 2)
    assert isinstance(size, int)
    settings = config(generation={"batch_size": 4, "batches_per_block": 1, **generation})
    sizes = dict.fromkeys(settings.data.modalities, size)
    return build(settings, images if images is not None else {"CT": [17], "X-Ray": [4]}, sizes)


def keys(plan: Plan) -> list[Key]:
    return [planned.key for planned in plan]


def test_the_whole_chain_in_order() -> None:
    assert keys(plan()) == [
        ("finetune", "ct"),
        ("finetune", "x-ray"),
        ("rlhf-stage1", "all"),
        ("rlhf-stage2", "ct"),
        ("rlhf-stage2", "x-ray"),
        ("generate", "ct-00000"),
        ("generate", "ct-00001"),
        ("generate", "ct-00002"),
        ("generate", "x-ray-00000"),
        ("evaluate", "all"),
    ]


def test_every_task_comes_after_what_it_waits_for_and_indices_count_from_zero_in_each_stage() -> None:
    seen: set[Key] = set()
    for planned in plan():
        assert {*planned.needs, *planned.after} <= seen
        seen.add(planned.key)
    for tasks in plan().by_stage.values():
        assert [planned.task.index for planned in tasks] == list(range(len(tasks)))


def test_generation_waits_for_its_own_modality_only() -> None:
    needs = plan().by_key["generate", "x-ray-00000"].needs
    assert needs == (("finetune", "x-ray"), ("rlhf-stage1", "all"), ("rlhf-stage2", "x-ray"))


@pytest.mark.parametrize(
    ("prompts", "images", "batch", "per_shard"), [*itertools.product((1, 7, 8, 9), (1, 3), (1, 4), (1, 2, 99))]
)
def test_shards_cover_every_item_once(prompts: int, images: int, batch: int, per_shard: int) -> None:
    planned = plan({"CT": [prompts * images]}, batch_size=batch, blocks_per_shard=per_shard)
    ranges = [task.task.blocks for task in planned.by_stage["generate"]]
    blocks = [block for start, end in ranges for block in range(start, end)]
    assert blocks == list(range(-(-prompts * images // batch)))
    assert all(end - start == per_shard for start, end in ranges[:-1])


def test_a_modality_without_prompts_has_no_shard_and_no_prompts_at_all_still_plan_the_rest() -> None:
    assert [key for key in keys(plan({"CT": [1]})) if key[0] == "generate"] == [("generate", "ct-00000")]
    assert "generate" not in plan({}).by_stage
    assert ("evaluate", "all") in keys(plan({}))


def test_with_training_stage_1_there_is_no_stage_2_and_generation_does_not_wait_for_one() -> None:
    settings = config(training={"stage": 1}, generation={"batches_per_block": 1})
    planned = build(settings, {"CT": [1]}, {"CT": 1})
    assert "rlhf-stage2" not in planned.by_stage
    assert planned.by_key["generate", "ct-00000"].needs == (("finetune", "ct"), ("rlhf-stage1", "all"))


def test_a_hundred_thousand_shards_are_planned() -> None:
    planned = plan({"CT": [800_000]})
    assert len(planned.by_stage["generate"]) == 100_000


def test_find_by_name_and_by_index_and_not_at_all() -> None:
    assert plan().find("generate", "3").task.name == plan().find("generate", "x-ray-00000").task.name
    with pytest.raises(InputError, match=r"no task 'mri'.*ct, x-ray"):
        plan().find("finetune", "mri")
    with pytest.raises(InputError, match="this campaign has no such stage"):
        plan().find("rlhf", "0")


def states(done: set[Key], failed: set[Key]) -> dict[str, str]:
    return {" ".join(key): state for key, state in settle(plan(), done, failed).states.items()}


def test_finetuning_and_stage_1_which_read_nothing_of_each_other_are_ready_at_first() -> None:
    ready = [name for name, state in states(set(), set()).items() if state == "ready"]
    assert ready == ["finetune ct", "finetune x-ray", "rlhf-stage1 all"]


def test_where_there_is_room_for_few_the_longest_chain_leads() -> None:
    assert [planned.task.stage for planned in plan().by_urgency] == [
        *("finetune", "finetune", "rlhf-stage1", "rlhf-stage2", "rlhf-stage2"),
        *(["generate"] * 4),
        "evaluate",
    ]


ALIGNED = {"align": {"enabled": True}}
WITHOUT = [stage for stage in STAGES if stage != "align"]


def test_alignment_comes_between_the_scorers_and_generation_where_it_is_enabled() -> None:
    of = {"data": {"modalities": ["CT"]}, "generation": {"batch_size": 4, "batches_per_block": 1}}
    planned = {task.key: task for task in build(config(**of, **ALIGNED), {"CT": [4]}, {"CT": 1})}
    assert planned["align", "ct"].needs == (FINETUNE, STAGE2)
    assert planned["generate", "ct-00000"].needs == (STAGE1, STAGE2, ("align", "ct"))
    assert ("align", "ct") in planned["evaluate", "all"].after
    assert "align" not in {stage for stage, _ in keys(plan())}


def test_whether_there_is_an_alignment_is_another_result_of_what_samples_with_it() -> None:
    """The scorers', too: a part of the ratings is the judge's alone."""
    assert changed(**ALIGNED) == list(STAGES[1:])
    assert changed(**ALIGNED, training={"stage": 1}) == list(STAGES[1:])


STAGE1, FINETUNE, STAGE2 = ("rlhf-stage1", "all"), ("finetune", "ct"), ("rlhf-stage2", "ct")


@pytest.mark.parametrize(
    ("generation", "stage", "needs"),
    [
        ({}, 2, (FINETUNE, STAGE1, STAGE2)),
        ({}, 1, (FINETUNE, STAGE1)),
        ({"modes": ["filtered"]}, 2, (FINETUNE, STAGE1, STAGE2)),
        ({"modes": ["baseline"]}, 2, ()),
        ({"modes": ["baseline"], "baseline_model": "finetuned"}, 2, (FINETUNE,)),
    ],
)
def test_generation_waits_for_what_its_modes_read(
    generation: dict[str, object], stage: int, needs: tuple[Key, ...]
) -> None:
    generation = {"batches_per_block": 1, **generation}
    settings = config(generation=generation, training={"stage": stage})
    planned = build(settings, {"CT": [1]}, {"CT": 1})
    assert planned.by_key["generate", "ct-00000"].needs == needs
    read = {key[0] for key in needs}
    faster = config(generation=generation, training={"stage": stage}, finetune={"learning_rate": 1e-4})
    prints = stage_fingerprints(settings, INPUTS)["generate"], stage_fingerprints(faster, INPUTS)["generate"]
    assert (prints[0] != prints[1]) == ("finetune" in read), "its fingerprint has what it reads and nothing else"


def test_one_line_says_what_a_stage_reads_and_the_order_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scorers that learn from the fine-tuned generators' own samples: of those modalities that have one."""
    reads = replace(READS["rlhf-stage1"], results=(Result("finetune"),), partial=True)
    monkeypatch.setitem(READS, "rlhf-stage1", reads)
    assert plan().by_key[STAGE1].after == (FINETUNE, ("finetune", "x-ray"))
    assert states({FINETUNE}, set())["rlhf-stage1 all"] == "waiting"
    assert states({FINETUNE}, {("finetune", "x-ray")})["rlhf-stage1 all"] == "ready"
    assert changed(finetune={"learning_rate": 1e-4}) == WITHOUT


def test_a_failed_modality_blocks_its_own_branch_only() -> None:
    now = settle(plan(), {FINETUNE, STAGE1, STAGE2}, {("finetune", "x-ray")})
    assert now.states["generate", "ct-00000"] == "ready"
    assert now.states["rlhf-stage2", "x-ray"] == "blocked"
    assert now.states["generate", "x-ray-00000"] == "blocked"
    assert now.blocked_by["generate", "x-ray-00000"] == (("finetune", "x-ray"),)
    assert now.states["evaluate", "all"] == "waiting"


def test_when_all_failed_everything_is_blocked_by_the_failures_themselves() -> None:
    failed = {("finetune", "ct"), ("finetune", "x-ray"), STAGE1}
    now = settle(plan(), set(), failed)
    assert {state for key, state in now.states.items() if key not in failed} == {"blocked"}
    assert set(now.blocked_by["evaluate", "all"]) == failed


def test_evaluation_starts_when_everything_is_over_though_not_everything_is_done() -> None:
    done = {key for key in keys(plan()) if key[0] != "evaluate"} - {("generate", "ct-00001")}
    assert states(done, set())["evaluate all"] == "waiting"
    assert states(done, {("generate", "ct-00001")})["evaluate all"] == "ready"


def test_what_is_done_stays_done_while_something_it_needed_is_made_again() -> None:
    done = set(keys(plan())) - {("finetune", "ct")}
    now = states(done, set())
    assert now["finetune ct"] == "ready"
    assert now["generate ct-00000"] == "done"


def fingerprints(inputs: dict[str, str] | None = None, **sections: dict[str, object]) -> dict[str, str]:
    return stage_fingerprints(config(**sections), inputs or INPUTS)


def changed(**sections: dict[str, object]) -> list[str]:
    return differing(fingerprints(), fingerprints(**sections))


def differing(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [stage for stage in STAGES if before.get(stage) != after.get(stage)]


def test_a_changed_value_changes_the_stages_that_read_it_and_those_that_read_their_results() -> None:
    assert changed(finetune={"learning_rate": 1e-4}) == ["finetune", "rlhf-stage2", "generate", "evaluate"]
    assert changed(training={"stage2": {"selector_threshold": 0.3}}) == ["rlhf-stage2", "generate", "evaluate"]
    assert changed(generation={"guidance_scale": 5.0}) == ["rlhf-stage2", "generate", "evaluate"]
    assert changed(generation={"max_attempts": 11}) == ["generate", "evaluate"]
    assert changed(evaluation={"kid_subsets": 7}) == ["evaluate"]
    assert changed(campaign={"seed": 1}) == WITHOUT
    assert changed(device={"cpu_threads": 3}) == WITHOUT  # it changes bits


def test_what_changes_no_result_changes_no_fingerprint() -> None:
    assert changed(cluster={"max_parallel": 7}, campaign={"name": "other"}) == []
    assert changed(generation={"blocks_per_shard": 3, "shard_minutes": 7}) == []
    assert changed(data={"modalities": ["CT", "X-Ray"], "table": "/elsewhere/metadata.csv"}) == []
    assert changed(finetune={"gpus": 2}) == []
    assert changed(finetune={"train_batch_size": 2, "gradient_accumulation_steps": 16}) == []
    assert changed(finetune={"train_batch_size": 2}) == ["finetune", "rlhf-stage2", "generate", "evaluate"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("table", WITHOUT),
        ("pairs", ["rlhf-stage1", "rlhf-stage2", "generate", "evaluate"]),
        ("ratings", ["rlhf-stage1", "rlhf-stage2", "generate", "evaluate"]),
        ("prompts", ["generate", "evaluate"]),
        ("weights", WITHOUT),
    ],
)
def test_a_changed_file_changes_the_stages_that_read_it(name: str, expected: list[str]) -> None:
    after = fingerprints(INPUTS | {name: "other"})
    assert differing(fingerprints(), after) == expected


def test_every_key_that_a_stage_reads_exists() -> None:
    known = [*(key for key, _ in flatten(Config().model_dump())), GLOBAL_BATCH]
    for stage, reads in READS.items():
        for key in (*reads.keys, *reads.also(config(finetune={"together": True}))):
            assert any(key == name or name.startswith(key + ".") for name in known), f"{stage} reads {key}"


def test_every_configuration_key_is_read_or_known_to_change_no_result() -> None:
    """A new key must be put into a stage's list, or here."""
    free = {
        *("campaign.name", "campaign.dir", "data.table", "data.root", "data.ratings_file", "data.prompts"),
        "data.pairs_file",
        *("data.base_prompt", "data.keep_columns", "data.linked_roots", "model_paths.stable_diffusion"),
        "model_paths.components",
        *("generation.blocks_per_shard", "generation.shard_minutes", "cluster.max_shards", "cluster.claim"),
        *("cluster.continue_in_allocation",),
        *("cluster.max_parallel", "cluster.max_requeues", "cluster.tflops", "cluster.gpu_memory_gib", "cluster.site"),
        *("finetune.checkpointing_steps", "finetune.checkpoints_total_limit", "finetune.keep_every"),
        *(
            "finetune.gradient_checkpointing",
            "finetune.max_lost_minutes",
            "finetune.keep_last_checkpoint",
            "data.phantoms.images_per_kind",
        ),
        *("finetune.gpus", "finetune.train_batch_size", "finetune.gradient_accumulation_steps"),  # but their product
        *("data.phantoms.prompts_per_kind", "data.phantoms.image_size"),
        *("training.report_to", "finetune.validation_images", "campaign.gate", "cluster.notify"),
        "align.enabled",  # but whether there is such a stage, whose results others read
        *("align.checkpointing_steps", "align.max_lost_minutes", "align.checkpoints_total_limit"),
    }
    unread = {
        key for key, _ in flatten(Config().model_dump()) if not any(reads_key(stage, key, Config()) for stage in STAGES)
    }
    assert unread == free


def test_parts_of_the_body_beside_a_modality_change_what_its_model_learns_from() -> None:
    """Which rows are plain MRI depends on what else is listed; among the five it does not."""

    def finetune(*modalities: str) -> str:
        return stage_fingerprints(config(data={"modalities": list(modalities)}), INPUTS)["finetune"]

    assert finetune("MRI") == finetune("MRI", "CT")
    assert len({finetune("MRI"), finetune("MRI", "Brain MRI"), finetune("MRI", "Breast MRI")}) == 3


def test_reading_more_of_a_text_is_another_result_and_reading_as_before_is_none() -> None:
    """The fingerprints of a campaign of an earlier version, which had no such key, still hold."""
    before, longer = config(), config(data={"modalities": ["CT", "X-Ray"], "text_chunks": 2})
    were = stage_fingerprints(before, INPUTS)
    assert all(stage_fingerprints(longer, INPUTS)[stage] != were[stage] for stage in WITHOUT)
    keys = [key for key in READS["finetune"].keys if key != "data.text_chunks"]
    assert before.section_fingerprint(*keys) == before.section_fingerprint(*READS["finetune"].keys)


# --- one model for all modalities -----------------------------------------------------------------------------------

TOGETHER = {"finetune": {"together": True}}


def test_one_task_fine_tunes_for_all_and_every_shard_waits_for_it() -> None:
    planned = build(
        config(generation={"batch_size": 4, "batches_per_block": 1}, **TOGETHER),
        {"CT": [4], "X-Ray": [4]},
        {"CT": 1, "X-Ray": 1},
    )
    assert [key for key in keys(planned) if key[0] == "finetune"] == [("finetune", "all")]
    for task in planned.by_stage["generate"]:
        assert ("finetune", "all") in task.needs
    with pytest.raises(InputError, match=r"with finetune\.together=true one task makes one model for all of them"):
        plan().find("finetune", "all")
    assert planned.find("finetune", "all").task.modality is None


def test_one_for_all_is_another_result_and_depends_on_which_those_are() -> None:
    assert changed(**TOGETHER) == ["finetune", "rlhf-stage2", "generate", "evaluate"]

    def finetune(*modalities: str) -> str:
        settings = config(data={"modalities": list(modalities)}, **TOGETHER)
        return stage_fingerprints(settings, INPUTS)["finetune"]

    assert finetune("MRI") != finetune("MRI", "CT")


def test_a_campaign_of_before_there_was_the_key_is_the_same() -> None:
    before = config().model_dump()
    del before["finetune"]["together"], before["align"]
    assert configuration.changes(before, config()) == {}
    assert fingerprints().keys() == {*WITHOUT}  # else its record would not be what is read here
    assert configuration.changes(before, config(**TOGETHER)) == {"finetune.together": (False, True)}
