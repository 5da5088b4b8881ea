from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

HEAVY = ("torch", "torchvision", "pandas", "diffusers", "transformers", "matplotlib", "submitit", "cleanfid")
CONFIG = "campaign: {name: small}\ndata: {table: phantoms, modalities: [CT], phantoms: {images_per_kind: 4}}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


def launch(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plan", "CONFIG", "--cluster", "local"],
        ["plan", "CONFIG", "--json"],
        ["status", "CONFIG"],
        ["logs", "CONFIG"],
        ["submit", "CONFIG", "--cluster", "slurm"],
    ],
)
def test_a_login_node_answers_without_importing_torch(config: Path, arguments: list[str], tmp_path: Path) -> None:
    arguments = [str(config) if word == "CONFIG" else word for word in arguments]
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['launch.py', *{arguments!r}]\n"
        f"try: runpy.run_path({str(ROOT / 'launch.py')!r}, run_name='__main__')\n"
        f"finally: print('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.stderr.rstrip().endswith("HEAVY"), result.stderr
    assert after.ru_utime - before.ru_utime < 8  # one second where nothing else runs


def test_a_plan_needs_no_weights_and_says_what_is_missing() -> None:
    result = launch("plan", "configs/sd15-pascal.yaml", "device.use_cuda=false")
    assert result.returncode == 65
    for stage in ("finetune", "rlhf-stage1", "rlhf-stage2", "generate", "evaluate"):
        assert stage in result.stdout
    assert "error: runwayml/stable-diffusion-v1-5, model_paths.stable_diffusion: these weights are not" in result.stderr
    assert "finetune.use_8bit_adam: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (ROOT / "runs" / "sd15-pascal").exists()


def test_a_plan_for_scripts(config: Path) -> None:
    result = launch(
        "plan",
        config,
        "--json",
        "--cluster=local",
        "generation.batch_size=2",
        "generation.batches_per_block=1",
        "generation.blocks_per_shard=1",
    )
    plan = json.loads(result.stdout)
    assert plan["stages"] == {"finetune": 1, "rlhf-stage1": 1, "rlhf-stage2": 1, "generate": 2, "evaluate": 1}
    last = plan["tasks"][-2]
    assert plan["ready"] and plan["next"].endswith("generation.blocks_per_shard=1 --cluster local")
    assert " submit " in plan["next"]
    assert (last["stage"], last["task"], last["blocks"]) == ("generate", "ct-00001", [1, 2])
    assert last["needs"] == [["finetune", "ct"], ["rlhf-stage1", "all"], ["rlhf-stage2", "ct"]]


def test_a_plan_says_what_is_expected_to_be_needed_and_that_these_are_estimates(config: Path) -> None:
    said = launch("plan", config, "--cluster=local", "device.use_cuda=false").stdout
    verdict, following = said.splitlines()[-2:]
    assert verdict.startswith("ready") and " submit " in following
    wrong = launch("plan", config, "data.table=no.csv").stdout.splitlines()
    assert wrong[-2].startswith("not ready: ") and " plan " in wrong[-1]
    assert "estimated computing time: " in said
    assert "on 1 CPU thread(s) a task" in said
    assert "a filtered image takes 3 to 10 candidates; 4.5 are assumed" in said
    assert "estimated disk for what is not done: " in said
    estimate = json.loads(launch("plan", config, "--json", "cluster.tflops=5.9", "cluster.gpu_memory_gib=12").stdout)[
        "estimate"
    ]
    assert (estimate["on_gpu"], estimate["tflops"], estimate["model_assumed"]) == (True, 5.9, False)
    assert estimate["hours"]["least"] < estimate["hours"]["expected"] < estimate["hours"]["most"]
    assert estimate["disk"]["needed"] <= estimate["disk"]["needed_all_at_once"] < estimate["disk"]["free"]
    assert set(estimate["stages"]) == {"finetune", "rlhf-stage1", "rlhf-stage2", "generate", "evaluate"}


def test_a_plan_for_a_card_that_is_too_small_names_what_to_change() -> None:
    result = launch("plan", "configs/sd15-pascal.yaml", "finetune.use_8bit_adam=false")
    assert result.returncode == 65
    assert "the sizes are those of Stable Diffusion v1.5" in result.stdout
    assert "finetune is estimated to need 15.3 GiB of GPU memory, but a card has 12 GiB" in result.stderr
    assert "finetune.use_8bit_adam=true would need 10.5 GiB" in result.stderr


def test_options_and_overrides_mix_in_any_order(config: Path) -> None:
    result = launch("plan", "--json", config, "training.stage=1", "generation.img_num=3")
    assert "rlhf-stage2" not in json.loads(result.stdout)["stages"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, ""),
        (["sumbit"], 2, "did you mean submit?"),
        (["plan"], 2, "CONFIG"),
        (["plan", "no.yaml"], 65, "no.yaml: there is no such configuration file"),
        (["plan", "CONFIG", "data.tabel=x"], 65, "did you mean data.table?"),
        (
            ["submit", "CONFIG", "--cluster", "slurm", "cluster.site=no.yaml"],
            65,
            "no.yaml: there is no such site profile",
        ),
        (["resume", "CONFIG", "--cluster", "local"], 65, "this campaign has not been submitted"),
        (["cancel", "CONFIG"], 65, "launch.py submit"),
        (["submit", "CONFIG", "--cluster", "local", "--max-parallel", "0"], 2, "must be 1 or more"),
        (["submit", "CONFIG", "--cluster", "local", "data.table=nowhere.csv"], 65, "nowhere.csv"),
        (["submit", "CONFIG", "--cluster", "local", "campaign.dir=/proc/nope"], 65, "campaign.dir: /proc/nope cannot"),
        (["status", "CONFIG"], 65, "launch.py submit"),
    ],
)
def test_mistakes_are_said_plainly(config: Path, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    result = launch(*(str(config) if word == "CONFIG" else word for word in arguments), cwd=tmp_path)
    assert (result.returncode, said in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_slurm_is_the_default_where_it_is(config: Path, tmp_path: Path) -> None:
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    result = launch("submit", config, cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (result.returncode, result.stderr.splitlines()[-1]) == (
        65,
        "Slurm: it cannot be queried: scontrol: no controller",
    )


def test_output_into_a_closed_pipe_is_no_error(config: Path) -> None:
    command = f"{sys.executable} launch.py plan {config} --json | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "Traceback" not in result.stderr


NOT_ON_LOGIN_NODES = (*HEAVY[:-2], "numpy", "PIL", "pyarrow", "pydicom", "nibabel", "skimage", "scipy", "safetensors")


def with_little_installed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`launch.py` where only pydantic, PyYAML, rich and submitit can be imported."""
    code = (
        "import runpy, sys\n"
        f"sys.modules |= dict.fromkeys({NOT_ON_LOGIN_NODES!r})\n"
        f"sys.argv = ['launch.py', *{[str(word) for word in arguments]!r}]\n"
        f"runpy.run_path({str(ROOT / 'launch.py')!r}, run_name='__main__')\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_login_node_needs_neither_torch_nor_image_readers(tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    rows = "".join(f"{number}.png,CT: finding {number},CT\n" for number in range(4))
    table.write_text("path,Text,modality\n" + rows)
    ratings = "".join(f"{number}.png,{1 + 2 * (number % 2)},CT,3,CT: finding\n" for number in range(4))
    (tmp_path / "ratings.csv").write_text("image_path,rating,modality,expert_level,prompt\n" + ratings)
    for number in range(4):
        (tmp_path / f"{number}.png").touch()
    own = [f"data.table={table}", "data.modalities=[CT]", f"campaign.dir={tmp_path / 'run'}"]
    result = with_little_installed("plan", "configs/tiny.yaml", "--cluster", "local", *own)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    assert re.search("its images were not read: (numpy|PIL) is not installed here", result.stderr)
    phantoms = with_little_installed("plan", "configs/tiny.yaml", "--cluster", "local")
    assert phantoms.returncode == 65
    assert "data.table: drawing phantoms needs numpy" in phantoms.stderr


@pytest.mark.parametrize("command", ["plan", "submit"])
def test_a_directory_that_cannot_be_is_one_line(config: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / ("x" * 300), tmp_path / "file", tmp_path / "file" / "below"):
        result = launch(command, config, f"campaign.dir={directory}", "--cluster", "local")
        assert result.returncode == 65
        assert [line for line in result.stderr.splitlines() if not line.startswith("warning")][1:] == []
        assert str(tmp_path) in result.stderr
