import os
import signal
import threading

import pytest

from ipyparcache.kernel.namespace import difference, interrupts_deferred, is_user_name, rebind, user_bindings


@pytest.mark.parametrize(
    "name", ["_", "__", "_i", "_i3", "_12", "_oh", "In", "Out", "__name__", "get_ipython"]
)
def test_what_the_shell_keeps_is_not_the_users(name):
    assert not is_user_name(name, 1, {})


@pytest.mark.parametrize("name", ["x", "_private", "i3", "In2", "open", "_x1"])
def test_other_names_are_the_users(name):
    assert is_user_name(name, 1, {})


def test_a_hidden_name_becomes_the_users_when_it_is_rebound():
    hidden = {"quit": quit}

    assert not is_user_name("quit", quit, hidden)
    assert user_bindings({"a": 1, "_": 2}, {}) == {"a": 1}


def test_a_difference_goes_by_identity_not_by_equality():
    one, other = [1], [1]
    found = difference({"a": one, "b": one, "gone": 1}, {"a": one, "b": other, "new": None})

    assert set(found.bound) == {"b", "new"}
    assert found.bound["b"] is other
    assert found.deleted == {"gone"}
    assert not difference({"a": one}, {"a": one})


def test_rebinding_deletes_what_is_there_and_forgives_what_is_not():
    namespace = {"a": 1, "b": 2}
    rebind(namespace, {"b": 3}, ["a", "never"])

    assert namespace == {"b": 3}


def test_an_interrupt_waits_until_the_block_has_ended():
    done = []

    def run():
        with interrupts_deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("committed")

    with pytest.raises(KeyboardInterrupt):
        run()

    assert done == ["committed"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_simply_run():
    done = []

    def run():
        with interrupts_deferred():
            done.append(1)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert done == [1]
