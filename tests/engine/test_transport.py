import socket
import threading

import pytest

from ipyparcache.engine import transport
from ipyparcache.engine.transport import PacketChannel, StreamChannel, receive_soon


@pytest.fixture(params=["packets", "stream"])
def ends(request):
    kind = socket.SOCK_SEQPACKET if request.param == "packets" else socket.SOCK_STREAM
    channel = PacketChannel if request.param == "packets" else StreamChannel
    pair = [channel(end) for end in socket.socketpair(socket.AF_UNIX, kind)]
    yield pair
    for end in pair:
        end.close()


def test_a_message_is_received_while_it_is_looked_for(ends, monkeypatch):
    monkeypatch.setattr(transport, "SPIN", 60.0)
    here, there = ends
    sender = threading.Thread(target=there.send, args=(("ring", 1),))
    yields = []
    monkeypatch.setattr(transport.os, "sched_yield", lambda: yields.append(len(yields)) or sender_starts())

    def sender_starts():
        if len(yields) == 1:
            sender.start()

    assert receive_soon(here) == (("ring", 1), [])
    sender.join()
    assert yields


def test_what_does_not_come_soon_is_not_waited_for(ends, monkeypatch):
    monkeypatch.setattr(transport, "SPIN", 0.001)

    assert receive_soon(ends[0]) is None


def test_where_there_is_one_processor_nobody_looks(ends, monkeypatch):
    monkeypatch.setattr(transport, "_CAN_SPIN", False)
    ends[1].send(("ring", 1))

    assert receive_soon(ends[0]) is None
    assert ends[0].receive() == (("ring", 1), [])


def test_the_end_of_the_other_side_is_told(ends):
    ends[1].close()

    with pytest.raises(EOFError):
        receive_soon(ends[0])
