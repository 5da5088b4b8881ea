"""Looks at the model while it is aligned: the same prompts from the same noise every time, as the campaign samples.

Every look is kept, so that a resumed run knows what was seen. One half of the images chooses the step; what is said of
that step is found in the other half. Where there is only one look to choose, all of them say it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from medsyn import disk, time_use
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.models.image_features import describe, grey, shrink
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.seeds import seed
from medsyn.stage import Control
from medsyn.training.alignment.advantage import rewards
from medsyn.training.alignment.candidates import SCORES, Scorers, Wanted, sampled_pictures, scores_of
from medsyn.training.alignment.judge import ASPECTS, Judge, Look, Seen, draws, gains
from medsyn.training.finetune.precision import autocast
from medsyn.training.finetune.state import TrainState
from medsyn.training.run import TrainingRun

SMALL = 64  # pixels of the images that structural similarity is taken of
HACKING = "reward hacking"
_NOT_ELIGIBLE = 1e6


@dataclass(frozen=True)
class Seat:
    """What the judge is asked about, and with what images are made and scored."""

    config: Config
    modality: str
    images: Sequence[Wanted]
    load_system: Callable[[], SyntheticSystem]  # without a UNet
    load_scorers: Callable[[], Scorers]
    threshold: float  # of the Selector
    judge: Judge
    control: Control


@dataclass
class Judging:
    """The looks of one round: before its first step, every `align.judge_every` steps, and after its last."""

    seat: Seat
    training: TrainingRun
    number: int  # of the round
    first: int  # steps of the rounds before it
    _looks: dict[int, Look] = field(default_factory=dict)
    _lines: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._folder = self.training.directory / f"looks-{self.number}"

    def begin(self, state: TrainState, start: int) -> None:
        """Go on after `start` steps of the task; at the beginning of a round, see what it begins with."""
        disk.make_directory(self._folder)
        disk.sweep_temporaries(self._folder)
        for path in sorted(self._folder.glob("*.safetensors")):
            step = int(path.stem)
            if step > start:
                path.unlink()
            else:
                self._take(step, load_file(path))
        if self.first not in self._looks:
            if start > self.first:
                reason = "has no look at what the round began with: remove the checkpoints beside it to begin anew"
                raise InputError(self._folder, reason)
            self._see(state, self.first)

    def look(self, state: TrainState, step: int) -> dict[str, Any]:
        """What the model makes after `step` steps of the task, for the metrics."""
        self._see(state, step)
        return {name: value for name, value in self._lines[step].items() if name != "gains"}

    @property
    def turned(self) -> str | None:
        """Why training is to stop: the last look was worse than the first, or than the best so far was; else None."""
        steps = sorted(self._looks)
        last, before = steps[-1], steps[0]
        worse = [name for name, (_, _, high, _) in self._gain(before, last, self._all).items() if self._has(name, high)]
        best = min(steps[1:], key=lambda step: (self.losses()[step], step), default=before)
        fallen = [name for name, (_, _, high, _) in self._gain(best, last, self._all).items() if self._has(name, high)]
        if last == before or not (worse or (best != last and fallen)):
            return None
        what = " and ".join(dict.fromkeys([*worse, *fallen]))
        up = self._lines[last]["reward"] > self._lines[before]["reward"]
        than = f"step {best - self.first}" if fallen and best != last else "before"
        return f"{HACKING if up else 'the judge turned'}: {what} worse than {'before' if worse else than}"

    def _has(self, name: str, high: float) -> bool:
        return self.seat.judge.decides[name] and high < 0

    def losses(self) -> dict[int, float]:
        """By step, the lower the better: minus the mean gain in standard errors, of the half that chooses."""
        return {step: self._loss(step) for step in self._looks if step > self.first}

    def _loss(self, step: int) -> float:
        found = self._gain(self.first, step, self._choosing)
        scores = [value / max(error, 1e-9) for name, (value, _, _, error) in found.items() if self._decides(name)]
        told = -float(np.mean(scores)) if scores else 0.0
        return told if self._why_not_diverse(step, self._choosing) is None else told + _NOT_ELIGIBLE

    def _decides(self, name: str) -> bool:
        return self.seat.judge.decides[name]

    def verdict(self, end: int) -> dict[str, Any]:
        """What came of the round, of which `end` is the last step that was made."""
        losses = self.losses()
        best = min(losses, key=lambda step: (losses[step], step))
        rows, lot = self._reporting, self._lot("verdict")
        found = self._gain(self.first, best, rows)
        better = [name for name, (_, low, _, _) in found.items() if self._decides(name) and low > 0]
        worse = [name for name, (_, _, high, _) in found.items() if self._has(name, high)]
        turned, not_diverse = self.turned, self._why_not_diverse(best, self._all)
        kept = bool(better) and not worse and not_diverse is None
        if kept:
            reason = f"better by the judge: {' and '.join(better)}"
        elif worse:
            reason = f"{HACKING if self._rewarded(best) else 'worse'}: the judge finds {' and '.join(worse)} worse"
        elif not_diverse is not None:
            reason = not_diverse
        else:
            named = [name for name in found if self._decides(name)]
            reason = f"the judge finds no difference in {' or '.join(named)}" if named else "nothing could be judged"
        return {
            "kept": kept,
            "step": best,
            "reason": reason,
            "stopped": turned if end < self.first + self.seat.config.align.max_train_steps else None,
            "judge": self.seat.judge.notes,
            "judged_images": len(rows),
            "before": self._looks[self.first].figures(rows, lot) | self._told(self.first),
            "after": self._looks[best].figures(rows, lot) | self._told(best),
            "gains": {name: values[:3] for name, values in found.items()},
            "steps_judged": {step - self.first: self._lines[step] for step in sorted(self._lines)},
        }

    def _rewarded(self, step: int) -> bool:
        return bool(self._lines[step]["reward"] > self._lines[self.first]["reward"])

    def _told(self, step: int) -> dict[str, Any]:
        return {name: self._lines[step][name] for name in ("reward", "accepted")}

    def _why_not_diverse(self, step: int, rows: np.ndarray) -> str | None:
        """Why the images are not diverse enough; None if they are.

        Wrong and noisy images are unlike one another, too, and getting better costs that kind of diversity: so it is
        shown to have fallen, and fewer real images are covered besides.
        """
        least, now, before = self.seat.config.align.min_diversity, self._looks[step], self._looks[self.first]
        real, was = self.seat.judge.notes["real_diversity"], before.value("diversity", rows) or 0.0
        wanted = least * (was if real is None else min(was, real))
        figure = now.figures(rows, self._lot("diversity"))["diversity"]
        if figure[2] >= wanted:
            return None
        reason = f"diversity {figure[0]:.3f} (at most {figure[2]:.3f}) is below {wanted:.3f}"
        if now.covered is not None and before.covered is not None:
            fell = now.covered.astype(float) - least * before.covered
            drawn = fell[draws(len(fell), self._lot("recall"))].mean(axis=1)
            if np.percentile(drawn, 97.5) >= 0:
                return None
            reason += f", and recall fell from {before.recalled:.2f} to {now.recalled:.2f}"
        return f"{reason} (align.min_diversity)"

    @property
    def _all(self) -> np.ndarray:
        return np.arange(len(self.seat.images))

    @property
    def _chooses(self) -> bool:
        """Whether there is more than one look after a step, if the round comes to its end."""
        return self.seat.config.align.judge_every < self.seat.config.align.max_train_steps

    @property
    def _choosing(self) -> np.ndarray:
        return self._all[0::2] if self._chooses else self._all

    @property
    def _reporting(self) -> np.ndarray:
        return self._all[1::2] if self._chooses else self._all

    def _lot(self, what: str) -> int:
        return seed(self.seat.config.campaign.seed, "judge", self.seat.modality, what)

    def _gain(self, before: int, after: int, rows: np.ndarray) -> dict[str, list[float]]:
        return gains(self._looks[before], self._looks[after], rows, self._lot("gain"))

    def _see(self, state: TrainState, step: int) -> None:
        tensors = self._sample(state)
        disk.write_atomic(self._folder / f"{step:09d}.safetensors", save(tensors))
        self._take(step, tensors)

    def _take(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Judge what was sampled after `step` steps."""
        seen = Seen(tensors["features"].numpy(), tensors["small"].float().numpy() / 255)
        look = self.seat.judge.look(seen)
        self._looks[step] = look
        told = {name: tensors["scores"][:, place].double().numpy() for place, name in enumerate(SCORES)}
        group = np.array([one.group for one in self.seat.images])
        found = rewards(told, tensors["finite"].numpy(), group, self.seat.config.align.spread_weight)
        line: dict[str, Any] = {
            "reward": float(np.nanmean(found.reward)),
            "accepted": float((told["selector"] >= self.seat.threshold).mean()),
            "recall": look.recalled,
        }
        line |= {name: value for name in (*ASPECTS, "diversity") if (value := look.value(name, self._all)) is not None}
        self._lines[step] = json.loads(json.dumps(line))

    @time_use.of(time_use.EVALUATING)
    @torch.no_grad()
    def _sample(self, state: TrainState) -> dict[str, Tensor]:
        """Features [N, D], small pictures [N, S, S], scores [N, 4], and which are finite [N]."""
        seat, config = self.seat, self.seat.config
        size, system = config.generation.images_per_batch, replace(seat.load_system(), unet=state.unet)
        found: dict[str, list[Tensor]] = {"features": [], "small": [], "scores": [], "finite": []}
        state.unet.eval()
        for start in range(0, len(seat.images), size):
            batch = seat.images[start : start + size]
            with autocast(state.dtype, state.unet.device):
                _, made, finite = sampled_pictures(config, system, seat.modality, batch)
            prompts = [one.prompt for one in batch]
            found["scores"].append(scores_of(seat.load_scorers(), system, seat.modality, prompts, made))
            for picture in made.cpu().numpy():
                features, small = seen_in(picture)
                found["features"].append(features[None])
                found["small"].append(small[None])
            found["finite"].append(torch.tensor(finite))
            seat.control.heartbeat(min(start + size, len(seat.images)), len(seat.images), "judged image")
        state.unet.train()
        return {name: torch.cat(parts).contiguous() for name, parts in found.items()}


def seen_in(picture: np.ndarray) -> tuple[Tensor, Tensor]:
    """What the judge sees of uint8 [H, W, 1 or 3]: its features [D], and a small grey copy, uint8 [S, S]."""
    colour = np.broadcast_to(picture, (*picture.shape[:2], 3))
    colour = np.ascontiguousarray(colour)
    small = np.round(grey(shrink(colour, SMALL)) * 255).astype(np.uint8)
    return torch.from_numpy(describe(colour)), torch.from_numpy(small)
