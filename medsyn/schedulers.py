"""The samplers by name, the steps each one takes, and which of a run's UNet calls compute less than all.

No diffusers and no torch here: configurations are checked on login nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

SchedulerName = Literal[
    "dpm",
    "dpm_karras",
    "dpm_sde",
    "dpm_single",
    "ddim",
    "ddpm",
    "pndm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpm2",
    "dpm2_a",
    "unipc",
    "deis",
    "sa",
    "lcm",
    "tcd",
]

TRAINING_STEPS = 1000  # of SD's noise schedule: no sampler takes more
MOST_GUIDANCE = 1000.0  # far beyond any useful value


@dataclass(frozen=True)
class Solver:
    """One sampler.

    `settings` is what the name implies, whatever the model's own scheduler was.
    """

    scheduler: str  # the class in diffusers
    settings: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False  # adds noise at every step
    fewest_steps: int = 1
    most_steps: int = TRAINING_STEPS
    zero_snr: bool = False  # begins at zero terminal SNR; in diffusers 0.27


_MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False}

SOLVERS: dict[SchedulerName, Solver] = {
    # DPM-Solver++(2M), Lu et al. 2022, https://arxiv.org/abs/2211.01095
    "dpm": Solver("DPMSolverMultistepScheduler", _MULTISTEP, zero_snr=True),
    "dpm_karras": Solver("DPMSolverMultistepScheduler", {**_MULTISTEP, "use_karras_sigmas": True}),
    "dpm_sde": Solver(
        "DPMSolverMultistepScheduler", {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++"}, True, zero_snr=True
    ),
    "dpm_single": Solver("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "ddim": Solver("DDIMScheduler", zero_snr=True),
    "ddpm": Solver("DDPMScheduler", stochastic=True, zero_snr=True),
    "pndm": Solver("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": Solver("LMSDiscreteScheduler"),
    "euler": Solver("EulerDiscreteScheduler", zero_snr=True),
    "euler_a": Solver("EulerAncestralDiscreteScheduler", stochastic=True, zero_snr=True),
    "heun": Solver("HeunDiscreteScheduler"),
    "dpm2": Solver("KDPM2DiscreteScheduler"),
    "dpm2_a": Solver("KDPM2AncestralDiscreteScheduler", stochastic=True),
    "unipc": Solver("UniPCMultistepScheduler"),
    "deis": Solver("DEISMultistepScheduler"),
    "sa": Solver("SASolverScheduler", stochastic=True),
    # the next two are for distilled models; their number of steps divides the distillation's 50
    "lcm": Solver("LCMScheduler", stochastic=True, most_steps=50),
    "tcd": Solver("TCDScheduler", stochastic=True, most_steps=50),
}
assert set(SOLVERS) == set(get_args(SchedulerName))


def is_in_interval(interval: Sequence[float], index: int, count: int) -> bool:
    """Whether UNet call `index` of `count` is in the guided interval, given as fractions of the steps."""
    start, end = interval
    return start <= index / count < end


@dataclass(frozen=True)
class Shortcuts:
    """What a run of the sampler leaves out, by the number of the call alone, so that images stay functions of seeds."""

    guidance_interval: tuple[float, float] = (0.0, 1.0)  # Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724
    deep_cache_every: int = 1  # DeepCache, Ma et al. 2023, https://arxiv.org/abs/2312.00858
    text_attention_until: float = 1.0  # T-GATE, Zhang et al. 2024, https://arxiv.org/abs/2404.02747

    @property
    def leaves_out_layers(self) -> bool:
        """Whether any call computes less than all of the UNet's layers."""
        return self.deep_cache_every > 1 or self.text_attention_until < 1

    def calls(self, count: int, with_guidance: bool = True) -> list[Call]:
        """What each of `count` UNet calls computes.

        A call is deep if it is due, or if it is guided and the deep features at hand are of the prompts only.

        Args:
            count: of the run; fractions are fractions of it.
            with_guidance: whether any image has a guidance scale other than 1.
        """
        found: list[Call] = []
        since, features_of_both = self.deep_cache_every, False  # of the last deep call
        for index in range(count):
            frozen = index / count >= self.text_attention_until
            guided = with_guidance and not frozen and is_in_interval(self.guidance_interval, index, count)
            deep = since >= self.deep_cache_every or (guided and not features_of_both)
            if deep:
                since, features_of_both = 0, guided
            since += 1
            found.append(Call(guided, deep, frozen))
        return found


@dataclass(frozen=True)
class Call:
    """One call of the UNet."""

    guided: bool  # with the unconditional half beside the conditional one
    deep: bool = True  # all of the UNet, not only its outermost layers
    text_frozen: bool = False  # attention to the text as it was before


NOTHING_LEFT_OUT = Shortcuts()
# `generation.fast`: what kept the judged quality (benchmarks/prompt_following.py, docs/performance.md)
FAST = Shortcuts(deep_cache_every=3, text_attention_until=0.6)


def wrong_steps(name: SchedulerName, steps: int) -> str | None:
    """Why the sampler cannot make `steps` steps, or None if it can."""
    solver = SOLVERS[name]
    if solver.fewest_steps <= steps <= solver.most_steps:
        return None
    return f"{name} takes {solver.fewest_steps} to {solver.most_steps} steps, not {steps}"
