"""The workers of this process: started by a fork server or one by one, lent to calls, watched, replaced.

A call leases workers and gives them back; a worker serves one call at a time, so calls from several threads
do not meet. No thread of ours runs: who holds a lease reads and writes the sockets of its workers itself.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import select
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from ipyparcache.engine.cpus import inner_threads, physical_memory
from ipyparcache.engine.launching import Server, accept, append_only, spawn, start_method
from ipyparcache.engine.transport import (
    CANCEL,
    INLINE,
    Block,
    Channel,
    Message,
    PacketChannel,
    StreamChannel,
    anonymous_file,
    can_memfd,
)
from ipyparcache.errors import EngineError, WorkersNotStarted
from ipyparcache.lean import signal, socket

TYPE_CHECKING = False  # type checkers take it for True; loading `typing` is a part of every cold start
if TYPE_CHECKING:
    from ipyparcache.engine.batches import Batch

IDLE_SECONDS = 300.0  # a worker that was sent nothing for so long goes
GRACE = 0.7  # seconds that a cancelled task gets before its worker is killed
KEPT_MEMORY = 32 << 20  # bytes of shared memory that an idle worker may keep warm in any case
KEPT_SHARE = 64  # all workers together may keep this part of the machine's memory: new pages are slow
FIRST = 2  # workers that are started before it is known how many tasks there are
KEPT_OUTPUT = 1 << 20  # bytes of output that were passed on already and may stay in memory


class WorkerHandle:
    """This side of a worker."""

    def __init__(self, number: int, tasks: Channel, bell: Channel, spare: Channel | None, block: Block):
        self.gone = False  # its socket is closed
        self.number = number
        self.tasks = tasks
        self.bell = bell
        self.spare = spare  # the worker's own end: what it has not received yet can be taken back
        self.block = block
        self.streams: tuple[int, int] = (-1, -1)  # descriptors of what its tasks print
        self.files: dict[int, int] = {}  # descriptors of results that came apart, by number
        self.read_to = [0, 0]  # how much of each was passed on
        self.written_to = 0  # the stream that its task writes now, as far as it said
        self.lifeline = -1  # end of a pipe that closes with this process: a spawned worker is killed then
        self.pid = 0
        self.server: Server | None = None  # which forked it, and knows how it ends
        self.said_hello = False
        self.ended: tuple[int, int] | None = None  # exit code (negative: signal), largest memory in bytes
        self.leased_to: weakref.ref[Lease] | None = None
        self.outstanding: deque[Batch] = deque()
        self.next_batch = 1
        self.state_version = -1  # of the surroundings it has
        self.spawned = False
        self.used_areas = False  # large arguments or results went through its block since it was trimmed
        self.dirty = False  # it may still run something of a call that is over
        self.kill_at = 0.0

    def close_files(self) -> None:
        """Close the memory files of results that nobody has read."""
        while self.files:
            os.close(self.files.popitem()[1])

    def close(self) -> None:
        """Close everything of this side."""
        self.gone = True
        self.close_files()
        self.tasks.close()
        if self.bell is not self.tasks:
            self.bell.close()
        if self.spare is not None:
            self.spare.close()
        self.block.close()
        for fd in self.streams:
            os.close(fd)
        if self.lifeline >= 0:
            os.close(self.lifeline)

    def __del__(self) -> None:
        # An interrupt at the wrong moment while it was started: nobody else has it.
        if not self.gone:
            with contextlib.suppress(OSError, BufferError, AttributeError, TypeError):
                self.close()


class Lease:
    """The workers of one call."""

    def __init__(self) -> None:
        self.workers: list[WorkerHandle] = []


class Pool:
    """All workers of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._server: Server | None = None
        self._workers: dict[int, WorkerHandle] = {}
        self._news = select.poll()  # the fork server's socket and the bells of all workers
        self._numbers = 0
        self._calls = itertools.count(1)
        self._reaper: threading.Timer | None = None
        self._early: dict[int, list[Message]] = {}  # what was told of workers that have not connected yet
        self._modules: tuple[str, ...] = ()
        self._forks_plain = False  # whether the workers started now are to do without cloudpickle at first
        self.failed_starts = 0  # in a row
        self.ending = False  # the interpreter is about to end
        self.idle_seconds = IDLE_SECONDS

    # -- starting -----------------------------------------------------------------------------------------

    def warm_up(self, count: int, modules: tuple[str, ...] = ()) -> None:
        """Start workers that will be wanted soon, and have them load modules; returns at once."""
        with self._lock:
            missing = count - sum(1 for worker in self._workers.values() if not worker.gone)
            for _ in range(missing):
                self._start()
            if modules:
                for worker in self._workers.values():
                    if worker.leased_to is None and not worker.gone:
                        worker.tasks.send(("import", modules, None, None))

    def preload(self, modules: tuple[str, ...]) -> None:
        """Have workers, also those to come, load modules before they need them; returns at once."""
        with self._lock:
            self._modules = modules
            if self._server is not None:
                self._server.channel.send(("load", modules))
            self.warm_up(0, modules)

    def prepare(self, count: int, modules: tuple[str, ...], version: int, state: bytes) -> None:
        """Have this many workers load modules in surroundings of this version; returns at once."""
        if len(state) > INLINE:  # the first call brings them
            return
        with self._lock:
            self.warm_up(count)
            for worker in self._workers.values():
                if worker.leased_to is None and not worker.gone:
                    known = worker.state_version == version
                    with contextlib.suppress(OSError):  # it has just ended, which the next call notices
                        limits = (inner_threads(count), False)
                        worker.tasks.send(("import", modules, limits, None if known else state))
                        worker.state_version = version

    def start_server(self) -> None:
        """Start the fork server if there is to be one; it gets ready while the caller goes on."""
        with self._lock:
            if self._server is None and start_method() == "forkserver":
                self._server = Server(may_fork=not self._workers and not os.environ.get("IPYPARCACHE_START"))
                if self._modules:
                    self._server.channel.send(("load", self._modules))
                self._news.register(self._server.channel, select.POLLIN)

    def begin(self, count: int) -> None:
        """Start the fork server for a first call that is not ready yet, and if it is a fork of this process,
        which has nothing to load, the first workers as well.
        """
        with self._lock:
            self.start_server()
            if self._server is not None and self._server.forked:
                self._forks_plain = True
                try:
                    self.warm_up(min(count, FIRST))
                finally:
                    self._forks_plain = False

    def _end_server(self, wait: float) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._news.unregister(server.channel)
            server.close(wait)

    def next_call(self) -> int:
        """A number for a call, unique in this process."""
        return next(self._calls)

    def _start(self) -> WorkerHandle:
        self._numbers += 1
        number = self._numbers
        method = start_method()
        if method == "forkserver":
            self.start_server()
        worker = self._start_by_memfd(number) if can_memfd() else self._start_by_name(number)
        worker.server = self._server
        self._workers[number] = worker
        self._news.register(worker.bell, select.POLLIN)
        return worker

    def _fork(self, message: Message, fds: list[int]) -> None:
        assert self._server is not None
        try:
            self._server.channel.send(message, fds)
        except (OSError, ConnectionError):
            # The server was killed: its workers are gone with it, and a new one is started, once.
            self._end_server(0)
            self.start_server()
            self._server.channel.send(message, fds)

    def _start_by_memfd(self, number: int) -> WorkerHandle:
        with contextlib.ExitStack() as undo:
            tasks, tasks_there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(tasks.close)
            undo.callback(tasks_there.close)
            bell, bell_there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(bell.close)
            with contextlib.closing(bell_there):
                block = Block.create()
                undo.callback(block.close)
                streams = []
                for name in ("stdout", "stderr"):
                    fd = anonymous_file(name)
                    undo.callback(os.close, fd)
                    streams.append(fd)
                    append_only(fd)
                worker = WorkerHandle(
                    number, PacketChannel(tasks), PacketChannel(bell), PacketChannel(tasks_there), block
                )
                worker.streams = (streams[0], streams[1])
                fds = [tasks_there.fileno(), bell_there.fileno(), block.areas[0][0], *streams]
                if start_method() == "forkserver":
                    self._fork(("fork", number, self.idle_seconds, None, self._forks_plain), fds)
                else:
                    there = {fd: 3 + at for at, fd in enumerate(fds)}
                    worker.pid, worker.lifeline = spawn(("fds", self.idle_seconds, os.getpid()), there)
                    worker.spawned = True
            undo.pop_all()
        return worker

    def _start_by_name(self, number: int) -> WorkerHandle:
        with contextlib.ExitStack() as undo:
            block = Block.create()
            undo.callback(block.close)
            streams = []
            for name in ("stdout", "stderr"):
                fd = os.open(f"{block.folder}/{name}", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
                undo.callback(os.close, fd)
                streams.append(fd)
            token = os.urandom(32)
            from socket import create_server  # it loads `enum`, which few calls need

            self._early.clear()
            told = self._early[number] = []
            with create_server(("127.0.0.1", 0)) as listener:
                named = (listener.getsockname()[:2], token, block.folder)
                launched = 0
                if start_method() == "forkserver":
                    self._fork(("fork", number, self.idle_seconds, named, self._forks_plain), [])
                else:
                    launched, lifeline = spawn(("named", self.idle_seconds, os.getpid(), named), {})
                    undo.callback(os.close, lifeline)
                end = accept(listener, token, lambda: self._has_ended(launched, told))
            undo.callback(end.close)
            channel = StreamChannel(end)
            worker = WorkerHandle(number, channel, channel, None, block)
            worker.streams = (streams[0], streams[1])
            if launched:
                worker.pid = launched
                worker.lifeline = lifeline
                worker.spawned = True
            for message in told:
                self._note_of_server(worker, message)
            undo.pop_all()
        self._early.clear()
        return worker

    def _has_ended(self, spawned: int, told: list[Message]) -> bool:
        """Whether a worker that is to connect has ended: by its process id, or by what is told of it."""
        if spawned:
            with contextlib.suppress(ChildProcessError):
                pid, status, usage = os.wait4(spawned, os.WNOHANG)
                if pid:
                    told.append(("ended", 0, os.waitstatus_to_exitcode(status), _bytes_of(usage.ru_maxrss)))
        else:
            self._pump_server()
        return (not spawned and self._server is None) or any(message[0] == "ended" for message in told)

    # -- lending ------------------------------------------------------------------------------------------

    def lease_waiting(self) -> Lease | None:
        """One worker that waits for work, if there is one."""
        lease = Lease()
        with self._lock:
            self._lend(lease, 1)
        return lease if lease.workers else None

    def _lend(self, lease: Lease, count: int) -> None:
        """Fill up a lease with workers that wait, to `count` if there are so many."""
        polled = self._news.poll(0)
        news = {fd for fd, _ in polled} if polled else ()
        if polled:
            self._pump_server()
        mark = weakref.ref(lease)
        for worker in list(self._workers.values()):
            if worker.leased_to is not None:
                if worker.leased_to() is not None:
                    continue
                # Its call vanished without giving it back (an interrupt in the wrong place).
                self.stop_running(worker)
            quiet = worker.said_hello and not worker.dirty
            if quiet and news and worker.bell.fileno() in news:
                quiet = False
            if not quiet and not self._is_ready(worker):
                continue
            worker.leased_to = mark
            lease.workers.append(worker)
            if len(lease.workers) == count:
                return

    def lease(
        self, count: int, is_plain: Callable[[], bool] | None = None, begun: Lease | None = None
    ) -> Lease:
        """Workers for a call: those of a lease that was begun, those that wait, and new ones.

        New ones come without cloudpickle if the call is plain.
        """
        lease = begun or Lease()
        mark = weakref.ref(lease)
        with self._lock:
            if len(lease.workers) < count:
                self._lend(lease, count)
            if len(lease.workers) >= count:
                return lease
            self._forks_plain = is_plain is not None and is_plain()
            try:
                while len(lease.workers) < count:
                    worker = self._start()
                    worker.leased_to = mark
                    lease.workers.append(worker)
            except OSError as error:
                if not lease.workers:
                    raise EngineError(f"no worker could be started: {error}") from error
                # Fewer workers than asked for (descriptors or memory are short) are still workers.
            finally:
                self._forks_plain = False
        return lease

    def another(self, lease: Lease) -> WorkerHandle:
        """A new worker for a lease, in place of one that ended."""
        with self._lock:
            self._pump_server()
            worker = self._start()
            worker.leased_to = weakref.ref(lease)
            lease.workers.append(worker)
            return worker

    def _is_ready(self, worker: WorkerHandle) -> bool:
        """Whether an idle worker can be lent; one that has ended is forgotten."""
        while not worker.gone:
            try:
                received = worker.bell.receive(wait=False)
            except EOFError:
                self.forget(worker)
                return False
            if received is None:
                if worker.dirty and worker.kill_at and time.monotonic() > worker.kill_at:
                    self.kill(worker)
                    self.forget(worker)
                    return False
                return not worker.dirty
            self.note(worker, *received)
        return False

    def note(self, worker: WorkerHandle, message: Message, fds: Sequence[int] = ()) -> None:
        """Take in what a worker says outside of batches; closes the descriptors that came with it."""
        for fd in fds:
            os.close(fd)
        if message[0] == "hello":
            worker.said_hello = True
            worker.pid = message[1]
            self.failed_starts = 0
        elif message[0] == "sync" and message[1] == worker.next_batch:
            worker.dirty = False
            worker.kill_at = 0.0
            worker.outstanding.clear()

    def release(self, lease: Lease) -> None:
        """Take workers back; one that may still run something gets `GRACE` seconds to finish."""
        with self._lock:
            stragglers = False
            for worker in lease.workers:
                if worker.gone:
                    continue
                if worker.outstanding or worker.dirty:
                    self.stop_running(worker)
                    stragglers = True
                elif worker.used_areas and worker.block.held() > self._kept_memory():
                    worker.block.trim()
                    worker.used_areas = False
                worker.close_files()
                worker.leased_to = None
            lease.workers = []
            if stragglers:
                self._watch_stragglers()

    def _kept_memory(self) -> int:
        return max(KEPT_MEMORY, physical_memory() // KEPT_SHARE // max(len(self._workers), 1))

    def stop_running(self, worker: WorkerHandle) -> None:
        """Drop what a worker was sent and has not begun, and ask it to stop behind the task that it runs.

        It is ready again when it has answered; until then, and at the latest for `GRACE` seconds, it is
        dirty.
        """
        worker.dirty = True
        if not worker.kill_at:
            worker.kill_at = time.monotonic() + GRACE
        worker.next_batch += 1
        worker.state_version = -1  # perhaps it has not received what it was told of them
        worker.block.words[CANCEL] = worker.next_batch
        worker.next_batch += 1
        try:
            self.unreceived(worker)
            worker.tasks.send(("end",), wait=False)
            if not worker.tasks.send(("sync", worker.next_batch), wait=False):
                worker.kill_at = time.monotonic()
        except (OSError, EOFError):
            self.forget(worker)

    def unreceived(self, worker: WorkerHandle) -> list[tuple[Message, list[int]]]:
        """Take back the messages that a worker has not received; their descriptors are closed."""
        taken: list[tuple[Message, list[int]]] = []
        if worker.spare is None:
            return taken
        while (received := worker.spare.receive(wait=False)) is not None:
            taken.append(received)
            for fd in received[1]:
                os.close(fd)
        return taken

    def _watch_stragglers(self) -> None:
        """Kill, when their grace is over, workers that still run a task of a call that ended early."""
        if self.ending or sys.is_finalizing():
            # The interpreter ends: a thread would not start any more, and its `start` would wait for ever.
            for worker in list(self._workers.values()):
                if worker.leased_to is None and worker.dirty:
                    self.kill(worker)
                    self.forget(worker)
            return
        if self._reaper is not None and self._reaper.is_alive():
            return
        owner = os.getpid()

        def look() -> None:
            if os.getpid() != owner:
                return
            with self._lock:
                self._reaper = None
                now = time.monotonic()
                for worker in list(self._workers.values()):
                    if worker.leased_to is None and worker.dirty and not self._is_ready(worker):
                        if worker.gone:
                            continue
                        if worker.kill_at <= now:
                            self.kill(worker)
                            self.forget(worker)
                if any(worker.dirty and worker.leased_to is None for worker in self._workers.values()):
                    self._watch_stragglers()

        self._reaper = threading.Timer(GRACE / 4, look)
        self._reaper.daemon = True
        self._reaper.start()

    # -- ending -------------------------------------------------------------------------------------------

    def kill(self, worker: WorkerHandle) -> None:
        """End a worker at once, with what its tasks started."""
        with self._lock:
            if worker.spawned:
                for kill, target in ((os.killpg, worker.pid), (os.kill, worker.pid)):
                    with contextlib.suppress(OSError):
                        if worker.ended is None:
                            kill(target, signal.SIGKILL)
            elif self._server is not None:
                with contextlib.suppress(OSError, ConnectionError):
                    self._server.channel.send(("kill", worker.number))

    def how_it_ended(self, worker: WorkerHandle, wait: float = 2.0) -> tuple[int | None, int]:
        """Exit code (negative: the signal) and largest memory of a worker whose socket has closed."""
        until = time.monotonic() + wait
        while True:
            with self._lock:
                if worker.spawned and worker.ended is None:
                    try:
                        pid, status, usage = os.wait4(worker.pid, os.WNOHANG)
                        if pid:
                            worker.ended = (os.waitstatus_to_exitcode(status), _bytes_of(usage.ru_maxrss))
                            with contextlib.suppress(OSError):
                                os.killpg(pid, signal.SIGKILL)
                    except ChildProcessError:
                        return None, 0
                else:
                    self._pump_server()
            if worker.ended is not None:
                return worker.ended
            if not worker.spawned and worker.server is not self._server:
                return None, 0  # the one who knew is gone
            if time.monotonic() > until:
                return None, 0
            time.sleep(0.001)

    def forget(self, worker: WorkerHandle) -> None:
        """Close this side of a worker that has ended, or was told to."""
        with self._lock:
            if worker.spawned and worker.ended is None:
                with contextlib.suppress(OSError):
                    os.killpg(worker.pid, signal.SIGKILL)
                self.how_it_ended(worker)
            if not worker.said_hello:
                self.failed_starts += 1
            self._workers.pop(worker.number, None)
            if not worker.gone:
                self._news.unregister(worker.bell)
                worker.close()

    def check_starts(self, worker: WorkerHandle) -> None:
        """Give up on workers that end before they are ready, with what the last one wrote."""
        if self.failed_starts < 3:
            return
        self.failed_starts = 0
        text = os.pread(worker.streams[1], 4000, 0).decode("utf-8", "replace") if not worker.gone else ""
        raise WorkersNotStarted(text.strip() or "they wrote nothing")

    def _pump_server(self) -> None:
        if self._server is None:
            return
        try:
            while (received := self._server.channel.receive(wait=False)) is not None:
                message = received[0]
                worker = self._workers.get(message[1])
                if worker is not None:
                    self._note_of_server(worker, message)
                elif message[1] in self._early:
                    self._early[message[1]].append(message)
        except EOFError:
            self._end_server(0)

    @staticmethod
    def _note_of_server(worker: WorkerHandle, message: Message) -> None:
        if message[0] == "forked":
            worker.pid = message[2]
        elif message[0] == "ended":
            worker.ended = (message[2], message[3])

    def shutdown(self, wait: float = 2.0) -> None:
        """End all workers and the fork server. Calls that run see their workers die; the next call
        starts anew.
        """
        with self._lock:
            if self._reaper is not None:
                self._reaper.cancel()
                self._reaper = None
            for worker in list(self._workers.values()):
                idle = worker.leased_to is None or worker.leased_to() is None
                if idle or self.ending:
                    if worker.spawned and not worker.gone:
                        with contextlib.suppress(OSError):
                            worker.tasks.send(("exit",), wait=False)
                        self._wait_or_kill(worker)
                    self.forget(worker)
            self._end_server(wait)

    def _wait_or_kill(self, worker: WorkerHandle) -> None:
        if self.how_it_ended(worker, wait=0.2)[0] is None:
            self.kill(worker)
            self.how_it_ended(worker)

    def pids(self) -> list[int]:
        """Process ids of the workers that are known to run."""
        with self._lock:
            for worker in list(self._workers.values()):
                if worker.leased_to is None:
                    self._is_ready(worker)
            return sorted(worker.pid for worker in self._workers.values() if worker.pid and not worker.gone)

    def settled(self, wanted: set[int], wait: float) -> set[int]:
        """Those of these workers, by process id, that wait for work: now, or within `wait` seconds when they
        have ended what a dropped call left them.
        """
        until = time.monotonic() + wait
        while True:
            there = wanted & set(self.pids())
            with self._lock:
                busy = {worker.pid for worker in self._workers.values() if worker.dirty}
            if not there & busy or time.monotonic() > until:
                return there - busy
            time.sleep(0.01)

    def server_pid(self) -> int | None:
        """Process id of the fork server."""
        return self._server.pid if self._server is not None else None

    def running(self) -> int:
        """How many workers are lent to a call now."""
        with self._lock:
            return sum(1 for worker in self._workers.values() if worker.leased_to is not None)

    def abandon(self) -> None:
        """Forget, in a forked child, what belongs to the parent: nothing is stopped, only closed here."""
        workers, self._workers = list(self._workers.values()), {}
        server, self._server = self._server, None
        self._lock = threading.RLock()
        self._news = select.poll()
        self._reaper = None
        for worker in workers:
            worker.block.folder = None  # the files are the parent's
            with contextlib.suppress(OSError, BufferError):
                worker.close()
        if server is not None:
            server.channel.close()


def _bytes_of(maxrss: int) -> int:
    """Bytes of what `wait4` tells of memory, in the unit of the system."""
    return maxrss * (1 if sys.platform == "darwin" else 1024)


_pool = Pool()


def the_pool() -> Pool:
    """The pool of this process."""
    return _pool


def shutdown_workers() -> None:
    """End all worker processes of this process and give back the memory shared with them.

    The next call starts new ones. A call that runs in another thread meanwhile sees its workers die.
    """
    _pool.shutdown()
    packing = sys.modules.get("ipyparcache.engine.packing")
    if packing is not None:
        packing.clear_larges()


def _at_exit() -> None:
    _pool.ending = True
    with contextlib.suppress(Exception):
        _pool.shutdown(wait=1.0)


def _after_fork() -> None:
    _pool.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
