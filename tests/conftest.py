"""What every test gets: folders of its own, and a check that it left nothing behind.

A test that leaves a process, a thread, an open descriptor, a shared memory block or a temporary file fails in
its teardown. `KEPT_THREADS` and `KEPT_DESCRIPTORS` list what a session may keep, each with its reason.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.watchdog import LIMIT, SLOW, Watchdog

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

WATCHDOG = pytest.StashKey[Watchdog]()
HUNG = Path(tempfile.gettempdir()) / f"hung-{os.getpid()}"  # where the watchdog names tests that hung

# Threads of libraries that live as long as the process.
KEPT_THREADS = {
    "IPythonHistorySavingThread": "IPython's, one a process",
    "ipyparcache-progress": "the timer of the progress bars; ends by itself half a minute after the last",
    "asyncio_": "the executor of an event loop that a library keeps, such as Playwright's",
}

# Descriptors that libraries open once and keep.
KEPT_DESCRIPTORS = re.compile(
    r"/dev/(null|urandom|random|tty)"
    r"|.*/(matplotlib|fonts?|zoneinfo|site-packages|__pycache__)/.*"
    r"|.*\.(so|ttf|pyc)"
    r"|anon_inode:.*",  # event loops and ZeroMQ's signalling; a worker's pipes and sockets are none of these
)

SECONDS_TO_END = 5.0  # what was told to end has this long to do it; nothing that ends at once is waited for


def ended(is_over: Callable[[], bool], seconds: float = SECONDS_TO_END) -> bool:
    """Whether the condition came true within the time; asked at once, then every 10 ms."""
    deadline = time.monotonic() + seconds
    while not is_over():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def own_descriptors() -> Counter[str]:
    """What the open descriptors of this process point at, with how many do."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            target = os.readlink(f"/proc/self/fd/{number}")
            if not KEPT_DESCRIPTORS.fullmatch(target):
                found[re.sub(r"^(socket|pipe):\[\d+\]$", r"\1", target)] += 1
    return found


def shared_blocks() -> set[str]:
    """Blocks in /dev/shm that can be ours, by the names that we or `multiprocessing` give them."""
    prefixes = ("ipyparcache", "psm_")
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else ()
    return {name for name in names if name.startswith(prefixes)}


def used_by_others(block: str) -> bool:
    """Whether another process, of another run of these tests, has mapped something of the block."""
    ours = {os.getpid(), *(process.pid for process in psutil.Process().children(recursive=True))}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.pid not in ours
                and f"/dev/shm/{block}" in Path(f"/proc/{process.pid}/maps").read_text()
            ):
                return True
    return False


def marked_processes(marker: str) -> list[psutil.Process]:
    """Processes that carry the test's marker in their environment, orphans too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get("IPYPARCACHE_TEST") == marker:
                found.append(process)
    return found


def has_ancestor_in(processes: set[psutil.Process], process: psutil.Process) -> bool:
    """Whether a process that began before the test started this one: a browser or server shared by tests."""
    with contextlib.suppress(psutil.Error):
        return any(parent in processes for parent in process.parents())
    return False


def end_workers() -> None:
    """Shut the warm worker pool down, if the test started one: it may outlive a call, not a test."""
    pool = sys.modules.get("ipyparcache.engine.pool")
    if pool is not None:
        pool.shutdown_workers()


def close_stores() -> None:
    """Close what the stores of the test keep open from one call to the next."""
    entry = sys.modules.get("ipyparcache.storage.entry")
    if entry is not None:
        entry.close_entries()


def pytest_configure(config: pytest.Config) -> None:
    """Start the watchdog. Output is not captured yet: what it says is seen at once."""
    if not sys.platform.startswith("win"):
        config.stash[WATCHDOG] = Watchdog(HUNG)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the watchdog."""
    if WATCHDOG in config.stash:
        config.stash[WATCHDOG].close()
        HUNG.unlink(missing_ok=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tell the watchdog which test runs."""
    watchdog = item.config.stash.get(WATCHDOG, None)
    if watchdog is not None:
        watchdog.begins(item.nodeid, SLOW if item.get_closest_marker("slow") else LIMIT)
    try:
        return (yield)
    finally:
        if watchdog is not None:
            watchdog.begins("", 0)


def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Tell where a test was that the watchdog had to interrupt; pytest itself tells the last line alone."""
    runner = ("_pytest", "pluggy")
    lines = [
        f"  {entry.path}:{entry.lineno + 1} in {entry.name}"
        for entry in excinfo.traceback
        if not any(part in runner for part in Path(entry.path).parts)
    ]
    if HUNG.exists():
        with HUNG.open("a") as file:
            file.write("\n".join(["  interrupted at", *lines]) + "\n")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which a test hung is red, though the test may have passed once its processes were ended."""
    if HUNG.exists():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name at the end what hung, where whoever sees only the last lines sees it."""
    if HUNG.exists():
        terminalreporter.section("tests that hung")
        terminalreporter.write(HUNG.read_text())


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> None:
    """A shell ignores interrupts in what it starts in the background, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def session_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Folders that would cost seconds to fill anew for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))  # its font cache
        yield


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store, a data folder, a home for IPython and a folder for temporary files, for this test alone.

    The folder for temporary files has a short name, as the path of a Unix socket holds 107 bytes.
    """
    for name in [name for name in os.environ if name.startswith("IPYPARCACHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("IPYPARCACHE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    temporary = Path(tempfile.mkdtemp(prefix="t"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield temporary
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_left_behind(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a process, thread, descriptor, shared memory block or temporary file behind."""
    marker = uuid.uuid4().hex
    monkeypatch.setenv("IPYPARCACHE_TEST", marker)
    here = psutil.Process()
    processes, threads = set(here.children(recursive=True)), set(threading.enumerate())
    descriptors, blocks = own_descriptors(), shared_blocks()

    yield

    end_workers()
    close_stores()
    left = []

    started = {*here.children(recursive=True), *marked_processes(marker)} - processes
    started -= {process for process in started if has_ancestor_in(processes, process)}
    _, alive = psutil.wait_procs(started, timeout=SECONDS_TO_END)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            left.append(f"process {process.pid}: {' '.join(process.cmdline()) or process.name()}")
            process.kill()

    def new_threads() -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread not in threads and not thread.name.startswith(tuple(KEPT_THREADS))
        ]

    if not ended(lambda: not new_threads()):
        left += [f"thread {thread.name!r}" for thread in new_threads()]

    def new_descriptors() -> Counter[str]:
        return own_descriptors() - descriptors

    if new_descriptors():
        gc.collect()  # what only a cycle holds is not a leak; 20 ms and more, so not for every test
    if not ended(lambda: not new_descriptors(), 1.0):
        left += [f"{count} open descriptor(s) of {target}" for target, count in new_descriptors().items()]
    if not ended(lambda: not shared_blocks() - blocks, 1.0):
        new_blocks = sorted(shared_blocks() - blocks)
        left += [f"shared memory block {name}" for name in new_blocks if not used_by_others(name)]
    left += [f"temporary file {name}" for name in sorted(os.listdir(own_folders))]

    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """An IPython shell in this process, whose namespace is `__main__` for as long as the test runs."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False  # no history file, hence no thread that writes it
    kept_main, kept_hooks = sys.modules["__main__"], (sys.displayhook, sys.excepthook)
    shell = InteractiveShell.instance(config=config, user_module=types.ModuleType("__main__"))
    try:
        yield shell
    finally:
        # At the end of the process IPython would reset each shell that there was, with a collection each,
        # and until then none of them is freed. Their temporary files go with the folder of the test.
        atexit.unregister(shell.atexit_operations)
        if shell.history_manager is not None:
            shell.history_manager.end_session()
        shell.restore_sys_module_state()
        InteractiveShell.clear_instance()
        sys.modules["__main__"] = kept_main
        sys.displayhook, sys.excepthook = kept_hooks


@pytest.fixture
def cell(shell: InteractiveShell) -> Callable[[str], object]:
    """Run a cell in the shell as a user would; its error, if it has one, is raised. Gives what `Out` gets."""

    def run(source: str) -> object:
        result = shell.run_cell(source, store_history=True)
        result.raise_error()
        return result.result

    return run


@dataclass
class Ran:
    """What a cell did in a real kernel, as a front end sees it."""

    status: str = "ok"
    error: str = ""  # "NameError: name 'x' is not defined"
    traceback: str = ""  # without its colours
    stdout: str = ""
    stderr: str = ""
    outputs: list[dict[str, Any]] = field(default_factory=list)  # the contents of the messages

    def shown(self, mime: str = "text/plain") -> list[str]:
        """The user's own results and displays in one format; notes of ipyparcache are left out."""
        return [
            output["data"][mime]
            for output in self.outputs
            if mime in output.get("data", {}) and "ipyparcache" not in output.get("metadata", {})
        ]

    def notes(self, mime: str = "text/plain") -> list[str]:
        """What ipyparcache itself showed: status lines, summaries, refusals."""
        return [
            output["data"][mime]
            for output in self.outputs
            if mime in output.get("data", {}) and "ipyparcache" in output.get("metadata", {})
        ]


class Kernel:
    """A real IPython kernel in the test's folder, and a client of it."""

    def __init__(self, folder: Path):
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager()
        self.manager.start_kernel(cwd=str(folder))
        self.connect()

    def connect(self) -> None:
        """Connect as a tab of the notebook does; the kernel may be busy."""
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def restart(self) -> None:
        """End the kernel as "Restart kernel" does and start it again."""
        self.client.stop_channels()
        self.manager.restart_kernel(now=False)
        self.connect()

    def run(self, source: str, timeout: float = 60.0) -> Ran:
        """Run one cell to its end; display updates are applied to the output they name."""
        ran, by_id = Ran(), {}

        def take(message: dict[str, Any]) -> None:
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                setattr(ran, content["name"], getattr(ran, content["name"]) + content["text"])
            elif kind in ("display_data", "execute_result", "update_display_data"):
                display_id = content.get("transient", {}).get("display_id")
                if kind == "update_display_data" and display_id in by_id:
                    by_id[display_id].update(data=content["data"], metadata=content["metadata"])
                elif kind != "update_display_data":
                    ran.outputs.append(content)
                    by_id[display_id] = content
            elif kind == "error":
                ran.error = f"{content['ename']}: {content['evalue']}"
                ran.traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(content["traceback"]))

        reply = self.client.execute_interactive(source, timeout=timeout, output_hook=take, allow_stdin=False)
        ran.status = reply["content"]["status"]
        return ran

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@pytest.fixture(scope="session")
def kernel_loop() -> None:
    """The event loop that jupyter_client makes once and keeps, with its two sockets."""
    from jupyter_core.utils import ensure_event_loop

    ensure_event_loop()


@pytest.fixture
def kernel(kernel_loop: None, tmp_path: Path, own_folders: Path) -> Iterator[Kernel]:
    """A real kernel of this interpreter; mark the test `kernel`."""
    kernel = Kernel(tmp_path)
    try:
        yield kernel
    finally:
        kernel.close()
