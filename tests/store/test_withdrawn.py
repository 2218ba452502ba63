"""An answer is what happened: what is refused for want of time is not done later."""

import threading

import pytest
from test_store import Gate, count, counted, path, writer  # noqa: F401

from minris.standard.status import Status
from minris.store.writer import NotSaved, Writer


def test_a_call_that_did_not_get_its_turn_is_never_done(path, writer):  # noqa: F811
    writer.PATIENCE = 0.05
    gate = Gate(writer)
    with pytest.raises(NotSaved) as refused:
        writer.call(count, "late")
    assert (refused.value.http, refused.value.status) == (503, Status.RESOURCE_LIMITATION)
    gate.open()
    writer.submit(count, "next").result(20)
    assert counted(path) == {"next"}


def test_a_call_that_has_begun_is_answered_with_what_happened(path, writer):  # noqa: F811
    writer.PATIENCE = 0.05
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(20)
        return count("slow")

    answers = []
    thread = threading.Thread(target=lambda: answers.append(writer.call(slow)))
    thread.start()
    assert begun.wait(20)
    threading.Timer(0.2, go_on.set).start()
    thread.join(20)
    assert answers == [1]
    assert counted(path) == {"slow"}


def test_what_cannot_be_finished_at_a_stop_is_not_saved_and_said_so(path):  # noqa: F811
    """A long call, one beside it in its batch, and one that waits."""
    one = Writer()
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        count("slow")
        begun.set()
        assert go_on.wait(20)

    gate = Gate(one)
    futures = [one.submit(count, "beside"), one.submit(slow)]
    gate.open()
    assert begun.wait(20)
    futures.append(one.submit(count, "waits"))
    assert not one.close(0.05)
    assert all(isinstance(future.exception(20), NotSaved) for future in futures)
    go_on.set()
    one.thread.join(20)
    assert not one.thread.is_alive()
    assert counted(path) == set()
