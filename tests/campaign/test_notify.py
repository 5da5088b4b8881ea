"""`cluster.notify`: who is told what, and how often."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medsyn.campaign import notify
from medsyn.campaign.local import scheduler
from medsyn.campaign.local.live_table import Display
from medsyn.campaign.state import attempts
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, Settled, settle
from medsyn.errors import InputProblems
from tests.helpers.trial import Trial

APPEND = """
import os, sys
with open(sys.argv[1], "a") as stream:
    print(sys.stdin.read().replace(chr(10), " "), os.environ[sys.argv[2]], file=stream)
"""


class Listener:
    """A command that writes down what it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.command = shlex.join([sys.executable, "-S", "-c", APPEND, str(path), "MEDSYN_EVENT"])

    def told(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        found = [json.JSONDecoder().raw_decode(line) for line in lines]
        for line, (facts, end) in zip(lines, found, strict=True):
            assert line[end:].strip() == facts["event"]
        return [facts for facts, _ in found]


@pytest.fixture
def listener(tmp_path: Path) -> Listener:
    return Listener(tmp_path / "told; $(touch here).txt")


def at(campaign: Campaign, *failed: Key) -> Settled:
    done = {planned.key for planned in campaign.plan} - set(failed)
    return settle(campaign.plan, done, failed)


def test_news_is_what_is_over(trial: Trial) -> None:
    plan = trial.prepare().plan
    everything, ct = {planned.key for planned in plan}, ("finetune", "ct")
    assert notify.news(settle(plan, everything, ())) == "done"
    assert notify.news(settle(plan, (), [ct])) is None, "another modality goes on"
    assert notify.news(settle(plan, everything - {("evaluate", "all")}, ())) is None
    assert notify.news(settle(plan, everything - {ct}, [ct])) == "failed"
    roots = [key for key in everything if key[0] in ("finetune", "rlhf-stage1")]
    assert notify.news(settle(plan, (), roots)) == "failed", "the rest is blocked"


def test_a_command_is_told_once_with_counts_and_no_shell(trial: Trial, listener: Listener) -> None:
    campaign = trial.prepare_short(cluster__notify=listener.command)
    said: list[str] = []
    for _ in range(3):
        notify.tell(campaign, at(campaign), said.append)
    facts = {"event": "done", "campaign": "trial", "directory": str(trial.root)}
    assert listener.told() == [{**facts, "tasks": 4, "done": 4, "failed": 0, "blocked": 0}]
    assert said == ["told cluster.notify: the campaign is done"]
    assert not Path("here").exists()


def test_another_failure_is_other_news(trial: Trial, listener: Listener) -> None:
    campaign, key = trial.prepare_short(cluster__notify=listener.command), ("evaluate", "all")
    for number in (1, 2):
        assert attempts.start_attempt(campaign.directory, key) == number
        for _ in range(2):
            notify.tell(campaign, at(campaign, key), print)
    assert [one["event"] for one in listener.told()] == ["failed", "failed"]


def test_whoever_is_killed_while_telling_tells_again(
    trial: Trial, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = trial.prepare_short(cluster__notify=listener.command)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(notify.disk, "write_json", killed)
        notify.tell(campaign, at(campaign), print)
    for _ in range(2):
        notify.tell(campaign, at(campaign), print)
    assert len(listener.told()) == 2


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/no/such/command --to me", "/no/such/command cannot be run: No such file or directory"),
        (f"{sys.executable} -S -c 'raise SystemExit(3)'", f"{sys.executable} ended with exit code 3"),
        ("sh -c 'sleep 60 & sleep 60'", "sh was stopped after 0 s"),
        ("http://127.0.0.1:9/secret", "127.0.0.1 was not told: [Errno 111] Connection refused"),
        ("http://[::1/", "ValueError: Invalid IPv6 URL"),
    ],
)
def test_what_goes_wrong_is_a_warning_and_is_not_tried_again(
    trial: Trial, command: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in command:
        monkeypatch.setattr(notify, "TIMEOUT_SECONDS", 0.2)
    campaign = trial.prepare_short(cluster__notify=command)
    said: list[str] = []
    notify.tell(campaign, at(campaign), said.append)
    assert said == [f"warning: cluster.notify: {why}"]
    if "[::1" not in command:
        notify.tell(campaign, at(campaign), said.append)
        assert len(said) == 1


@pytest.fixture
def site() -> Iterator[tuple[str, list[Any]]]:
    """A site that takes what is posted to it."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Content-Type"], json.loads(content)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_site_gets_json(trial: Trial, site: tuple[str, list[Any]]) -> None:
    url, got = site
    campaign = trial.prepare_short(cluster__notify=url)
    notify.tell(campaign, at(campaign), print)
    ((path, kind, facts),) = got
    assert (path, kind, facts["event"], facts["done"]) == ("/hook", "application/json", "done", 4)


@pytest.mark.parametrize(
    ("value", "why"),
    [("mail 'me", "is not a command line: no closing quotation"), ("  ", "is blank"), ("mial me", "'mial'")],
)
def test_a_wrong_command_is_found_before_anything_runs(trial: Trial, value: str, why: str) -> None:
    with pytest.raises(InputProblems, match=rf"cluster.notify: .*{why}"):
        trial.prepare_config(trial.config(cluster__notify=value), here=True)


def test_a_campaign_that_is_done_already_is_told_of_once(trial: Trial, listener: Listener) -> None:
    campaign = trial.prepare_short(cluster__notify=listener.command)
    for planned in campaign.plan:
        trial.work(*planned.key)
    for _ in range(2):
        assert scheduler.run(campaign, Display(campaign, Console(), "again")) == 0
    assert [one["event"] for one in listener.told()] == ["done"]
