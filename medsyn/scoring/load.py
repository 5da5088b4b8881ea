"""The scorers that are asked for: loaded, and checked against one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsyn import disk
from medsyn.config import EMBEDDED, DeviceSection, load
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.models import model_folder
from medsyn.models.cards import read_card
from medsyn.models.device import choose_device
from medsyn.models.policy import Policy
from medsyn.models.scorers import PROVENANCE, load_policy, load_selector, read_config
from medsyn.models.scores import Card
from medsyn.models.selector import Selector
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.models.weights import KEY, locate, weights_fingerprint
from medsyn.stage import CampaignDirectory, campaign_above


@dataclass(frozen=True)
class Scorers:
    """A Selector and perhaps a Policy, ready to score."""

    selector: Selector
    card: Card  # the Selector's
    resolution: int  # pixels: the side of the square that images are shown as
    device: torch.device
    policy: Policy | None = None
    system: SyntheticSystem | None = None  # whose text encoder reads the Policy's prompts


def load_scorers(
    selector: str | Path, policy: str | Path | None = None, model: str | Path | None = None, device: str = "auto"
) -> Scorers:
    """Load scorers.

    Args:
        selector: directory of a trained Selector.
        policy: directory of a trained Policy.
        model: whose text encoder the Policy was trained with; that of the campaign that the Policy is in, else the
            embedded model.
        device: `auto`, `cpu` or `cuda:N`.

    Raises:
        InputProblems: everything that is wrong with them.
        InputError: weights that exist but cannot be read.
        BadNode: a GPU was assigned to this process but cannot be used.
    """
    problems: list[Problem] = []
    facts: Mapping[str, Any] = {}
    source, chosen, chunks, card, section = EMBEDDED, torch.device("cpu"), 1, Card(), None
    try:
        section = read_config(Path(selector), Selector)["section"]
        card = read_card(Path(selector))
        facts = _facts(Path(selector))
    except InputError as error:
        problems += error.problems
    try:
        chosen = _device(device)
    except InputError as error:
        problems += error.problems
    if policy is not None:
        try:
            source, chunks = _check_policy(Path(policy), None if model is None else str(model))
        except (InputError, InputProblems) as error:
            problems += error.problems
    if problems or section is None:
        raise InputProblems(dict.fromkeys(problems))
    resolution = facts.get("data.resolution")
    side = resolution if isinstance(resolution, int) else int(section["image_size"])
    system = None
    if policy is not None:
        system = load_synthetic(source, chosen, with_unet=False, text_chunks=chunks)
    loaded = None if policy is None else load_policy(Path(policy), chosen)
    return Scorers(load_selector(Path(selector), chosen), card, side, chosen, loaded, system)


def _facts(directory: Path) -> Mapping[str, Any]:
    """What a scorer was made from; empty where that is not on record."""
    try:
        facts = disk.read_json(directory / PROVENANCE)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _check_policy(directory: Path, model: str | None) -> tuple[str, int]:
    """The model whose text encoder a Policy needs, and how many chunks of a text that reads."""
    described, facts = read_config(directory, Policy), _facts(directory)
    source = model or _model_of_campaign(directory)
    if problems := model_folder.problems(source):
        raise InputProblems(problems)
    if facts.get(KEY, weights_fingerprint(source)) != weights_fingerprint(source):
        reason = f"was trained with other weights than those of {source}: give its model with --pretrained-model"
        raise InputError(directory, reason)
    base = locate(source)
    features = described["text_dim"] if base is None else model_folder.text_features(base)
    if features != described["text_dim"]:
        reason = f"expects {described['text_dim']} text features, and {source} makes {features}: it was trained with "
        raise InputError(directory, f"{reason}another model, which --pretrained-model names")
    chunks = facts.get("data.text_chunks", 1)
    return source, chunks if isinstance(chunks, int) else 1


def _model_of_campaign(directory: Path) -> str:
    campaign = campaign_above(directory)
    if campaign is None:
        return EMBEDDED
    return load(CampaignDirectory(campaign).config, environment={}).model_paths.stable_diffusion


def _device(name: str) -> torch.device:
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,4}))?", name)
    if match is None:
        raise InputError("--device", f"must be auto, cpu or cuda:N, got {name!r:.100}")
    number = int(match[1] or 0) if name.startswith("cuda") else None
    try:
        return choose_device(DeviceSection(use_cuda=name != "cpu"), number).device
    except InputError as error:
        raise InputError("--device", error.problem.reason) from None
