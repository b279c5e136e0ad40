"""Relay: labels and forwarding of lines, without groups."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys

import pytest

from spoolpool.launch import output_relay
from spoolpool.launch.output_relay import Relay
from spoolpool.protocol.heartbeat_program import is_stopped
from spoolpool.system.stop_request import FORWARDED, HURRY, STOP_SIGNALS
from tests.support.waiting import LIMIT, wait_until

RELAYED = """\
import os, sys
from spoolpool.launch.output_relay import Relay

relay = Relay(as_json=bool(int(sys.argv.pop(1))))
out, err = relay.pipes("0123456789abcdef", ["a", "b"], r"(\\d+): ")
for text in sys.argv[1:]:
    os.write(out, text.encode().decode("unicode_escape").encode())
os.write(err, b"1: to the other\\n")
os.close(out), os.close(err)
relay.close()
"""


def relayed(*texts: str, as_json: bool = False) -> tuple[str, str]:
    command = [sys.executable, "-c", RELAYED, str(int(as_json)), *texts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_output_and_errors_stay_apart_and_lines_are_labelled_with_node_and_rank() -> None:
    out, err = relayed("0: one\\n1: two\\nno rank\\n7: too many\\n")
    assert out.splitlines() == [
        "[01234567 a 0] one",
        "[01234567 b 1] two",
        "[01234567] no rank",
        "[01234567 7] too many",
    ]
    assert err == "[01234567 b 1] to the other\n"


def test_lines_become_json_objects_with_a_json_log() -> None:
    out, _ = relayed('0: {\\"level\\": \\"INFO\\"}\\nplain \\xff\\n', as_json=True)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"group": "01234567", "node": "a", "rank": 0, "level": "INFO"},
        {"group": "01234567", "node": None, "rank": None, "text": "plain \u00ff"},
    ]


def test_line_in_pieces_is_joined_and_a_last_line_gets_a_newline() -> None:
    assert relayed("0: be", "gin and ", "end\\n0: rest")[0] == "[01234567 a 0] begin and end\n[01234567 a 0] rest\n"


def test_long_line_is_split_to_bound_memory() -> None:
    lines = relayed(*["x" * 10_000] * 5)[0].splitlines()
    assert "".join(line.removeprefix("[01234567] ") for line in lines) == "x" * 50_000
    assert max(map(len, lines)) < 17_000


def test_group_of_very_many_ranks_is_labelled(capfd: pytest.CaptureFixture[str]) -> None:
    relay = Relay()
    pipes = relay.pipes("0123456789abcdef", [f"node{rank // 100}" for rank in range(50_000)], r"(\d+): ")
    os.write(pipes[0], b"49999: last\n")
    for pipe in pipes:
        os.close(pipe)
    relay.close()
    assert capfd.readouterr().out == "[01234567 node499 49999] last\n"


def test_groups_beyond_the_soft_limit_of_descriptors_keep_their_output(capfd: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(256, *map(int, os.listdir("/proc/self/fd"))) + 16  # the process of the tests may have many
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        relay = Relay()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    pipes = [relay.pipes(f"{number:08d}", ["a"]) for number in range(200)]
    for out, _ in pipes:
        os.write(out, b"line\n")
    for pipe in (pipe for pair in pipes for pipe in pair):
        os.close(pipe)
    relay.close()
    relay._process.wait(LIMIT)  # read only then: readouterr() drops what is written between its read and its truncation
    text = capfd.readouterr().out
    assert sorted(text.splitlines()) == [f"[{number:08d} a] line" for number in range(200)]


def test_killed_relay_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    relay = Relay()
    os.kill(relay._process.pid, signal.SIGKILL)
    wait_until(lambda: relay._process.poll() is not None, "the relay has ended")
    pipes = relay.pipes("0123456789abcdef", ["a"])
    os.write(pipes[0], b"still here\n")
    for pipe in pipes:
        os.close(pipe)
    relay.close()
    relay._process.wait(LIMIT)  # close() waits for some seconds only
    assert capfd.readouterr().out == "[01234567 a] still here\n"


def test_relay_that_could_not_be_started_is_started_for_the_next_group(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "too many processes")

    relay = Relay(labels=False)
    with monkeypatch.context() as patch:
        patch.setattr(output_relay.subprocess, "Popen", refuse)
        with pytest.raises(BlockingIOError):
            relay.pipes("0123456789abcdef", ["a"])
    assert relay.last_errors("0123456789abcdef") == []
    pipes = relay.pipes("0123456789abcdef", ["a"])
    os.write(pipes[0], b"later\n")
    for pipe in pipes:
        os.close(pipe)
    relay.close()
    relay._process.wait(LIMIT)  # close() waits for some seconds only
    assert capfd.readouterr().out == "later\n"


@pytest.mark.parametrize("number", [*STOP_SIGNALS, FORWARDED, HURRY])
def test_relay_ignores_signals_of_a_batch_system_also_while_it_starts(
    capfd: pytest.CaptureFixture[str], number: int
) -> None:
    relay = Relay()
    os.kill(relay._process.pid, number)
    pipes = relay.pipes("0123456789abcdef", ["a"])
    os.write(pipes[0], b"forwarded\n")
    for pipe in pipes:
        os.close(pipe)
    relay.close()
    assert relay._process.wait(LIMIT) == 0
    assert capfd.readouterr().out == "[01234567 a] forwarded\n"
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_last_errors_are_those_of_all_pipes_of_a_group_up_to_its_end() -> None:
    relay = Relay()
    group, other = relay.pipes("0123456789abcdef", ["a", "b"], r"(\d+): "), relay.pipes("fedcba9876543210", ["a"])
    rank = relay.pipes("0123456789abcdef", ["a", "b"], rank=1)
    os.write(group[0], b"to the output\n")
    os.write(other[1], b"another group\n")
    for number in range(100):
        os.write(group[1], f"0: line {number}\n".encode())
    os.write(rank[1], b"from rank 1\n")
    os.write(group[1], b"un")
    os.write(group[1], b"finished")
    for pipe in (*group, *rank):
        os.close(pipe)
    lines = relay.last_errors("0123456789abcdef")
    assert len(lines) == 60 and "line 99" in lines and "line 20" not in lines
    assert set(lines) >= {"from rank 1", "unfinished"} and "to the output" not in lines
    assert relay.last_errors("fedcba9876543210") == ["another group"]
    assert relay.last_errors("0000000000000000") == []
    for pipe in other:
        os.close(pipe)
    relay.close()


def test_last_errors_of_a_killed_relay_are_unknown() -> None:
    relay = Relay()
    pipes = relay.pipes("0123456789abcdef", ["a"])
    os.write(pipes[1], b"lost\n")
    os.kill(relay._process.pid, signal.SIGKILL)
    assert relay.last_errors("0123456789abcdef") in ([], ["lost"])  # the signal may come later
    wait_until(lambda: relay._process.poll() is not None, "the relay has ended")
    assert relay.last_errors("0123456789abcdef") == []
    for pipe in pipes:
        os.close(pipe)
    relay.close()


def test_last_errors_are_those_of_the_group_also_after_a_relay_that_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_ANSWER_SECONDS", "_LATE_SECONDS"):
        monkeypatch.setattr(output_relay, name, 0.1)
    relay = Relay()
    groups = {name: relay.pipes(name, ["a"]) for name in ("00000001", "00000002")}
    for name, pipes in groups.items():
        os.write(pipes[1], f"of {name}\n".encode())
    os.kill(relay._process.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(relay._process.pid), "the relay is stopped")
    assert relay.last_errors("00000001") == relay.last_errors("00000001") == []
    for name in ("_ANSWER_SECONDS", "_LATE_SECONDS"):
        monkeypatch.setattr(output_relay, name, LIMIT)
    os.kill(relay._process.pid, signal.SIGCONT)
    assert relay.last_errors("00000002") == ["of 00000002"]
    assert relay.last_errors("00000001") == ["of 00000001"]
    for pipe in (pipe for pipes in groups.values() for pipe in pipes):
        os.close(pipe)
    relay.close()


def test_groups_keep_their_output_after_a_supervisor_that_left_an_answer_unread(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_relay, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(output_relay, "_END_SECONDS", 0.0)
    relay = Relay()
    first = relay.pipes("00000001", ["a"])
    relay_pid = relay._process.pid
    os.kill(relay_pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(relay_pid), "the relay is stopped")
    assert relay.last_errors("00000001") == []
    os.kill(relay_pid, signal.SIGCONT)
    assert relay._socket is not None
    assert select.select([relay._socket], [], [], LIMIT)[0], "the relay has answered"
    os.kill(relay_pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(relay_pid), "the relay is stopped")
    second = relay.pipes("00000002", ["a"])
    relay.close()
    os.kill(relay_pid, signal.SIGCONT)
    os.write(first[0], b"one\n")
    os.write(second[0], b"two\n")
    for pipe in (*first, *second):
        os.close(pipe)
    assert relay._process.wait(LIMIT) == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[00000001 a] one", "[00000002 a] two"]
    assert err == ""


def test_relay_without_labels_starts_no_process_before_its_first_group(capfd: pytest.CaptureFixture[str]) -> None:
    relay = Relay(labels=False)
    assert relay.last_errors("0123456789abcdef") == []
    relay.close()
    assert relay._socket is None
    pipes = relay.pipes("0123456789abcdef", ["a", "b"], r"(\d+): ")
    os.write(pipes[0], b"7: as it is\n")
    os.write(pipes[1], b"an error\n")
    assert relay.last_errors("0123456789abcdef") == ["an error"]
    for pipe in pipes:
        os.close(pipe)
    relay.close()
    relay._process.wait(LIMIT)
    assert capfd.readouterr() == ("7: as it is\n", "an error\n")
