import socket

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
