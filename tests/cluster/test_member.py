"""cluster/member.py: how a process ends by what it is told, or when it is told nothing any more."""

import os
import queue
import socket
import threading
import time

import pytest

from resnext_jax.cluster import member
from resnext_jax.cluster.find import Part
from resnext_jax.cluster.wire import Wire
from resnext_jax.errors import Lost, UserError


class Hub:
    """Process 0 in its words only."""

    def __init__(self, connection):
        self._connection, self._wire = connection, Wire(connection)

    def say(self, kind, content=None):
        self._wire.send(kind, content)

    def heard(self):
        """The next message that is no heartbeat."""
        while True:
            messages = [message for message in self._wire.receive() if message[0] != "beat"]
            if messages:
                return messages[0]

    def close(self):
        self._connection.close()


@pytest.fixture
def ends(monkeypatch):
    """(status, message) of the end of this process, which it lives through."""
    printed, ended = [], queue.Queue()

    def end(status):
        ended.put((status, printed[-1]))
        threading.Event().wait()  # this thread goes no further

    monkeypatch.setattr(member, "print_error", printed.append)
    monkeypatch.setattr(os, "_exit", end)
    return ended


@pytest.fixture
def joined(ends):
    """A process and its hub."""
    near, far = socket.socketpair()
    hub = Hub(far)
    yield member.Connection(Wire(near), 1, "process 0 (a)"), hub
    hub.close()
    time.sleep(0.1)
    near.close()


def test_the_end_of_process_0_is_the_end_of_all(joined, ends):
    connection, hub = joined
    connection.step = 1234
    hub.close()
    status, message = ends.get(timeout=5)
    assert status == 76
    assert message.startswith("process 0 (a) is lost: its connection closed at ")
    assert "It was at step 1,234 or a little later." in message
    assert message.endswith("Run all processes again: training resumes at the newest checkpoint.")


def test_so_is_its_silence(ends, monkeypatch):
    monkeypatch.setattr(member, "LOST_AFTER_S", 0.8)
    near, far = socket.socketpair()
    hub = Hub(far)
    member.Connection(Wire(near), 1, "process 0 (a)")
    for _ in range(12):
        hub.say("beat")
        time.sleep(0.1)
    assert ends.empty()
    status, message = ends.get(timeout=5)
    assert status == 76
    assert message.startswith("process 0 (a) is lost: nothing has been heard of it since ")
    near.close()
    hub.close()


def test_it_ends_as_it_is_told(joined, ends):
    _, hub = joined
    hub.say("end", {"status": 76, "text": "process 3 is lost"})
    assert ends.get(timeout=5) == (76, "process 3 is lost")


def test_after_another_has_left_there_is_time_for_an_end_of_ones_own(joined, ends):
    _, hub = joined
    hub.say("left", {"status": 2, "text": "process 3 has an error", "grace_s": 1.0})
    hub.close()  # process 0 has ended, too, and is not lost
    with pytest.raises(queue.Empty):
        ends.get(timeout=0.6)
    assert ends.get(timeout=5) == (2, "process 3 has an error")


def test_a_roll_call_in_which_not_all_are_alike(joined):
    connection, hub = joined
    hub.say("verdict", [])
    connection.compare({"batch_size": "256"})
    assert hub.heard() == ("facts", {"batch_size": "256"})
    hub.say("verdict", ["  batch_size: 256 on process 0 (a), but 512 on process 1 (b)"])
    with pytest.raises(UserError, match=r"not alike:\n  batch_size: 256 on process 0 \(a\), but 512"):
        connection.compare({"batch_size": "512"})


def test_success_waits_for_all_and_an_end_of_its_own_is_not_overtaken(joined, ends):
    connection, hub = joined
    hub.say("all left")
    connection.leave(0)
    assert hub.heard() == ("bye", 0)
    hub.close()
    with pytest.raises(queue.Empty):
        ends.get(timeout=1.0)


def test_a_process_that_is_lost_while_others_have_succeeded(joined, ends):
    connection, hub = joined
    threading.Thread(target=connection.leave, args=(0,), daemon=True).start()
    assert hub.heard() == ("bye", 0)
    hub.say("end", {"status": 76, "text": "process 3 is lost"})
    assert ends.get(timeout=5) == (76, "process 3 is lost")


def test_an_error_that_is_the_consequence_of_a_loss_is_not_heard_of(joined, ends):
    """The main thread, whose collective has failed, waits for the reason, and then says nothing more."""
    connection, hub = joined
    connection.wait_for_news(0.2)  # none
    main = threading.Thread(target=connection.wait_for_news, args=(0.5,), daemon=True)
    main.start()
    hub.say("end", {"status": 76, "text": "process 3 is lost"})
    assert ends.get(timeout=5)[0] == 76
    main.join(1.0)
    assert main.is_alive()


def test_process_0_that_does_not_answer_is_waited_for_no_longer_than_asked():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        start_s = time.monotonic()
        with pytest.raises(Lost) as error:
            member.connect(Part("127.0.0.1", port, 2, 1), "b", 1.0)
    assert 1.0 <= time.monotonic() - start_s < 3.0
    assert str(error.value).startswith(
        f"process 0 did not answer at 127.0.0.1:{port} within 1 s (--join_timeout_s), for process 1 (b): "
        "Connection refused."
    )
