import socket
import time

import pytest

CELL = '%%cached\nprint("first")\nwait(1)\nprint("second")\nx = 3\nx'


@pytest.fixture
def gate(tmp_path):
    """A socket on which a cell of the kernel waits for a byte."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "gate"))
        listening.listen()
        yield listening


def test_a_cell_whose_tab_was_closed_shows_all_that_was_missed_when_it_is_run_again(kernel, gate):
    kernel.run("%load_ext ipyparcache")
    kernel.run("import builtins, socket\nline = socket.socket(socket.AF_UNIX)\nline.connect('gate')")
    kernel.run("builtins.wait = line.recv; del line")  # a C function: no input and no file
    with gate.accept()[0] as to_the_cell:
        kernel.client.execute(CELL)
        while kernel.client.get_iopub_msg(timeout=30)["msg_type"] != "stream":
            pass  # until its first line was printed
        kernel.client.stop_channels()  # the tab is closed
        to_the_cell.send(b"!")
        kernel.connect()
        again = kernel.run(CELL)

    assert again.notes()[0].startswith("cached")
    assert again.stdout == "first\nsecond\n"
    assert again.shown() == ["3"]
    assert kernel.run("x").shown() == ["3"]


def test_who_waits_for_another_kernel_is_told_and_can_stop_waiting(kernel, kernel_loop, tmp_path):
    cell = "%%cached\nimport time\ntime.sleep(4)\nx = 3"
    other = type(kernel)(tmp_path)
    try:
        other.run("%load_ext ipyparcache")
        kernel.run("%load_ext ipyparcache")
        first = kernel.client.execute(cell)
        while kernel.client.get_iopub_msg(timeout=30)["msg_type"] != "execute_input":
            pass
        time.sleep(0.5)  # until it holds the lock
        asked = other.client.execute(cell, stop_on_error=False)  # as a page: it can be asked for input
        told = message_of(other, asked, "display_data")
        other.manager.interrupt_kernel()
        error = message_of(other, asked, "error")
        message_of(kernel, first, "display_data")
        again = other.run(cell)
    finally:
        other.close()

    assert "another kernel" in told["data"]["text/plain"]
    assert error["ename"] == "KeyboardInterrupt"
    shown = "\n".join(error["traceback"])
    assert "waited for another kernel" in shown
    assert "ipyparcache/" not in shown
    assert again.notes()[0].startswith("cached")


def message_of(kernel, request, kind):
    """The content of the next message of a kind that a cell sends."""
    while True:
        message = kernel.client.get_iopub_msg(timeout=60)
        if message["msg_type"] == kind and message["parent_header"]["msg_id"] == request:
            return message["content"]
