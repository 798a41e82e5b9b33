"""cluster/hub.py: what the processes of a run are told, by sockets in place of processes."""

import contextlib
import socket
import time

import pytest

from resnext_jax.cluster import hub
from resnext_jax.cluster.wire import Wire

AGAIN = "Run all processes again: training resumes at the newest checkpoint."


class Peer:
    """The other end of a process: what it says, and what it is told besides heartbeats."""

    def __init__(self, connection):
        self.wire, self._told = Wire(connection), []

    def say(self, kind, content=None):
        self.wire.send(kind, content)

    def told(self, kinds=1):
        until_s = time.monotonic() + 10
        while len(self._told) < kinds and time.monotonic() < until_s:
            self._told += [message for message in self.wire.receive() if message[0] != "beat"]
        messages, self._told = self._told[:kinds], self._told[kinds:]
        assert len(messages) == kinds
        return messages if kinds > 1 else messages[0]

    def ended(self):
        kind, content = self.told()
        assert kind == "end"
        return content["status"], content["text"]


@pytest.fixture
def run(monkeypatch):
    """Starts the hub of a run: (process 0, a function that brings another one)."""
    said = []
    with contextlib.ExitStack() as stack:

        def start(num_processes, timeout_s=30.0):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            hub_end, own_end = socket.socketpair()
            own = hub.Hub(listener, hub_end, "a", num_processes, timeout_s, said.append)
            stack.callback(own.stop)

            def bring(process, host, num=num_processes):
                connection = socket.create_connection(listener.getsockname(), timeout=5)
                peer = Peer(connection)
                stack.callback(connection.close)
                peer.say("hello", {"process": process, "num_processes": num, "host": host})
                return peer

            bring.address = listener.getsockname()
            stack.callback(own_end.close)
            return Peer(own_end), bring

        yield start


@pytest.fixture
def pair(run):
    """A run of two that is complete."""
    first, bring = run(2)
    second = bring(1, "b")
    assert second.told() == ("welcome", "a")
    return first, second


def test_the_absent_are_named_within_the_time_limit(run):
    first, bring = run(4, timeout_s=1.0)
    third = bring(2, "c")
    assert third.told() == ("welcome", "a")
    start_s = time.monotonic()
    for peer in (first, third):
        status, text = peer.ended()
        assert status == 76
        assert text.startswith("process 1, process 3 of 4 did not come within 1 s (--join_timeout_s); ")
        assert "here: process 0 (a), process 2 (c)" in text
        assert text.endswith(AGAIN)
    assert time.monotonic() - start_s < 3


def test_all_facts_equal(pair):
    for peer in pair:
        peer.say("facts", {"batch_size": "256"})
    assert [peer.told() for peer in pair] == [("verdict", [])] * 2
    pair[0].say("service", 1234)
    assert [peer.told() for peer in pair] == [("service", 1234)] * 2


def test_every_process_is_told_the_differences_of_each_roll_call(pair):
    for devices in ("4", "8"):
        pair[0].say("facts", {"number of devices": "8"})
        pair[1].say("facts", {"number of devices": devices})
        lines = [] if devices == "8" else ["  number of devices: 8 on process 0 (a), but 4 on process 1 (b)"]
        assert [peer.told() for peer in pair] == [("verdict", lines)] * 2


def test_who_does_not_answer_a_roll_call_is_named(run):
    first, bring = run(2, timeout_s=1.0)
    second = bring(1, "b")
    second.told()
    first.say("facts", {})
    status, text = second.ended()
    assert status == 76
    assert text.startswith("process 1 (b) did not answer the roll call within 1 s")


def test_a_process_killed_is_named_to_the_others(run):
    first, bring = run(3)
    second, third = bring(1, "b"), bring(2, "c")
    assert [second.told(), third.told()] == [("welcome", "a")] * 2
    second.say("beat", 1233)
    time.sleep(0.3)
    second.wire.close()
    for peer in (first, third):
        status, text = peer.ended()
        assert status == 76
        assert text.startswith("process 1 (b) is lost: its connection closed at ")
        assert "It was at step 1,233 or a little later." in text
        assert text.endswith(AGAIN)


def test_a_frozen_process_is_lost_after_a_while_of_silence(run, monkeypatch):
    monkeypatch.setattr(hub, "LOST_AFTER_S", 0.8)
    first, bring = run(2)
    second = bring(1, "b")
    second.told()
    for talkers in ((first, second), (first,)):  # as long as something comes, nobody is lost
        until_s = time.monotonic() + 1.6
        while time.monotonic() < until_s:
            for peer in talkers:
                peer.say("beat", None)
            time.sleep(0.1)
    status, text = first.ended()
    assert status == 76
    assert text.startswith("process 1 (b) is lost: nothing has been heard of it since ")


def test_another_number_of_processes_ends_all(run):
    first, bring = run(3)
    second = bring(1, "b", num=2)
    (kind, sentence), (status, text) = second.told(), first.ended()
    assert (kind, status, sentence) == ("refused", 2, text)
    assert text.startswith("process 1 (b) is one of 2 by its own account, but process 0 is one of 3")


def test_an_id_that_is_there_twice_ends_all(run):
    first, bring = run(3)
    second = bring(1, "b")
    assert second.told() == ("welcome", "a")
    third = bring(1, "c")
    (kind, sentence), (status, text) = third.told(), second.ended()
    assert (kind, status, sentence) == ("refused", 2, text)
    assert text.startswith("process 1 is there twice, on b and on c")
    assert first.ended() == (2, text)


def test_a_process_may_come_again_before_all_are_there(run):
    first, bring = run(3)
    second = bring(1, "b")
    assert second.told() == ("welcome", "a")
    second.wire.close()
    time.sleep(0.3)
    again, third = bring(1, "b"), bring(2, "c")
    assert [again.told(), third.told()] == [("welcome", "a")] * 2
    for peer in (first, again, third):
        peer.say("facts", {})
    assert [peer.told() for peer in (first, again, third)] == [("verdict", [])] * 3


def test_who_comes_to_a_complete_run_is_to_try_again(run):
    first, bring = run(2)
    second = bring(1, "b")
    second.told()
    for num_processes in (2, 5):
        kind, sentence = bring(1, "b", num=num_processes).told()
        assert kind == "busy"
        assert "process 1 (b) comes to a run that has all its processes" in sentence
    for peer in (first, second):  # which it has not disturbed
        peer.say("facts", {})
        assert peer is first or peer.told() == ("verdict", [])


@pytest.mark.parametrize(
    ("status", "grace_s", "sentence"),
    [
        (2, 5, "process 1 (b) stopped with an error of its own: see what it printed, and mend it there."),
        (1, 5, "process 1 (b) stopped with an error of its own: see what it printed, and mend it there."),
        (130, 5, "process 1 (b) was interrupted; training resumes at its newest checkpoint when all run again."),
        (75, 30, f"process 1 (b) was preempted and has ended. {AGAIN}"),
    ],
)
def test_an_end_before_its_time_is_passed_on_and_nobody_is_lost(pair, status, grace_s, sentence):
    first, second = pair
    second.say("bye", status)
    assert first.told() == ("left", {"status": status, "text": sentence, "grace_s": grace_s})
    second.wire.close()
    first.say("bye", status)
    assert first.told() == ("all left", None)


def test_who_waits_for_the_others_may_leave_and_with_process_0_all_do(run):
    first, bring = run(4)
    second, third = bring(1, "b"), bring(2, "c")
    assert [second.told(), third.told()] == [("welcome", "a")] * 2
    second.say("bye", 130)
    assert second.told() == ("all left", None)
    second.wire.close()
    first.say("bye", 130)
    assert first.told() == ("all left", None)
    kind, content = third.told()
    assert (kind, content["status"]) == ("left", 130)
    assert content["text"].startswith("process 0 (a) was interrupted;")


def test_success_of_one_is_no_end_of_the_others(pair):
    first, second = pair
    second.say("bye", 0)
    first.say("facts", {})
    second.say("facts", {})
    assert [first.told(), second.told()] == [("verdict", [])] * 2  # the run goes on
    first.say("bye", 0)
    assert [first.told(), second.told()] == [("all left", None)] * 2


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n\r\n", b'["hello", {"process": "x"}]\n', b'["beat", 3]\n', b"[]\n"]
)
def test_strangers_are_shown_the_door_and_the_run_goes_on(run, words):
    first, bring = run(2)
    with socket.create_connection(bring.address, timeout=5) as stranger:
        stranger.sendall(words)
        assert stranger.recv(100) == b""
    second = bring(1, "b")
    assert second.told() == ("welcome", "a")
    for peer in (first, second):
        peer.say("facts", {})
    assert [first.told(), second.told()] == [("verdict", [])] * 2
