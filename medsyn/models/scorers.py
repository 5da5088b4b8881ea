"""Scorers on disk: `config.json` says what to build, `model.safetensors` holds the weights and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from medsyn import disk, time_use
from medsyn.config import PolicySection, ScorerSection
from medsyn.errors import InputError
from medsyn.models.policy import NETWORK, Policy
from medsyn.models.quality import FEATURES
from medsyn.models.scores import Card
from medsyn.models.selector import Selector
from medsyn.models.weights import FACTS, SCORER_WEIGHTS

CONFIG, WEIGHTS, PROVENANCE = "config.json", SCORER_WEIGHTS, FACTS


def save_scorer(model: Selector | Policy, directory: Path, provenance: dict[str, Any] | None = None) -> None:
    """Save a scorer as `directory`, which appears whole; an existing one stays.

    Args:
        model: what to save.
        directory: where to save it.
        provenance: what the weights were made from, saved beside them as `facts.json`.
    """
    described: dict[str, Any] = {
        "kind": type(model).__name__,
        "section": model.section.model_dump(include=set(_section_of(type(model)).model_fields)),
        "metrics": list(FEATURES),
        "card": model.card.model_dump(),
    }
    if isinstance(model, Policy):
        described |= {"text_dim": model.text_dim, "network": NETWORK}
    with disk.atomic_directory(directory) as temporary:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        with disk.writing(directory / WEIGHTS):
            save_file(tensors, temporary / WEIGHTS)
        disk.write_json(temporary / CONFIG, described)
        if provenance is not None:
            disk.write_json(temporary / PROVENANCE, provenance)


@time_use.of(time_use.LOADING)
def load_selector(directory: Path, device: torch.device) -> Selector:
    """The Selector saved in `directory`, ready to score on `device`.

    Raises:
        InputError: it is missing, is something else, or is damaged.
    """
    described = read_config(directory, Selector)
    selector = Selector(ScorerSection(**described["section"]), Card(**described["card"]))
    _load_weights(selector, directory)
    return selector.to(device).eval()


@time_use.of(time_use.LOADING)
def load_policy(directory: Path, device: torch.device) -> Policy:
    """The Policy saved in `directory`, ready to score on `device`.

    Raises:
        InputError: it is missing, is something else, or is damaged.
    """
    described = read_config(directory, Policy)
    policy = Policy(PolicySection(**described["section"]), described["text_dim"], Card(**described["card"]))
    _load_weights(policy, directory)
    return policy.to(device).eval()


def read_config(directory: Path, wanted: type[nn.Module]) -> dict[str, Any]:
    """The configuration of the scorer saved in `directory`; raises InputError if it is not a `wanted`."""
    try:
        described: dict[str, Any] = disk.read_json(directory / CONFIG)
    except OSError as error:
        reason = f"is not a saved {wanted.__name__}: {CONFIG}: {error.strerror}"
        raise InputError(directory, reason) from None
    except ValueError:
        raise InputError(directory, f"is not a saved {wanted.__name__}: {CONFIG} is damaged") from None
    if not isinstance(described, dict):
        raise InputError(directory, f"is not a saved {wanted.__name__}: {CONFIG} is damaged")
    if "kind" not in described:
        raise InputError(directory, f"is not a saved {wanted.__name__}, but another program's model")
    if described.get("kind") != wanted.__name__:
        raise InputError(directory, f"is a {described.get('kind')}, not a {wanted.__name__}")
    if "card" not in described:
        raise InputError(directory, "was made by an earlier version of medsyn, as a single network; train it again")
    if described.get("metrics") != list(FEATURES):
        raise InputError(directory, "was trained with different quality metrics from this version's; train it again")
    if wanted is Policy and described.get("network") != NETWORK:
        raise InputError(directory, "is another network than this version's Policy; train it again")
    _check_sizes(directory, wanted, described)
    return described


def _section_of(kind: type[nn.Module]) -> type[ScorerSection]:
    return PolicySection if kind is Policy else ScorerSection


def _check_sizes(directory: Path, wanted: type[nn.Module], described: dict[str, Any]) -> None:
    """Raise InputError if a scorer's configuration does not say what to build."""
    try:
        _section_of(wanted).model_validate(described["section"])
        Card.model_validate(described["card"])
        features = described["text_dim"] if wanted is Policy else 1
    except (KeyError, ValidationError) as error:
        what = "; ".join(one["msg"] for one in error.errors()) if isinstance(error, ValidationError) else f"no {error}"
        raise InputError(directory / CONFIG, f"does not describe a {wanted.__name__} of this version: {what}") from None
    if not isinstance(features, int) or isinstance(features, bool) or features < 1:
        raise InputError(directory / CONFIG, f"text_dim must be a whole number from 1, got {features!r:.100}")


def _load_weights(model: nn.Module, directory: Path) -> None:
    try:
        model.load_state_dict(load_file(directory / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch says what differs from the second line on
        reason = "; ".join(line.strip().rstrip(".") for line in str(error).splitlines())
        raise InputError(directory / WEIGHTS, f"is damaged or does not fit its {CONFIG}: {reason:.1000}") from None
