"""A JupyterLab of its own and a headless Chromium, for tests that look at a notebook as a person does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
}


class Lab:
    """A JupyterLab server on a free port of the loopback, with every Jupyter folder of its own."""

    def __init__(self, root: Path):
        self.root, home = root / "work", root / "home"
        self.root.mkdir(parents=True)
        home.mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
        environment |= {
            "HOME": str(home),
            "IPYTHONDIR": str(home / "ipython"),
            "PATH": os.path.dirname(sys.executable) + os.pathsep + environment["PATH"],
            "IPYPARCACHE_DIR": str(root / "store"),
            "XDG_DATA_HOME": str(root / "data"),
        }
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            environment[f"JUPYTER_{name}"] = str(home / name.lower())
        environment["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
        environment["JUPYTERLAB_WORKSPACES_DIR"] = str(home / "workspaces")
        for plugin, values in SETTINGS.items():
            file = home / "settings" / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.token, self._log = secrets.token_hex(16), root / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                    *(
                        "--ServerApp.ip=127.0.0.1",
                        f"--ServerApp.port={self.port}",
                        "--ServerApp.port_retries=0",
                    ),
                    *(f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"),
                    *("--LabApp.expose_app_in_browser=True", "--LabApp.news_url="),
                    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                ],
                env=environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(self._log.read_text()[-4000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            self.api("GET", "/api/status")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def api(self, method: str, path: str) -> Any:
        """Ask the server's own interface."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            data = reply.read()
        return json.loads(data) if data else None

    def write(self, name: str, cells: list[str]) -> None:
        """Make a notebook of code cells."""
        import nbformat
        from nbformat.v4 import new_code_cell, new_notebook

        kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
        notebook = new_notebook(
            cells=[new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernelspec}
        )
        nbformat.write(notebook, self.root / name)

    def end_kernels(self) -> None:
        """End all kernels, so that the server can stop at once and no test meets another's."""
        for kernel in self.api("GET", "/api/kernels"):
            self.api("DELETE", f"/api/kernels/{kernel['id']}")

    def stop(self) -> None:
        """End the kernels and the server."""
        with contextlib.suppress(Exception):
            self.end_kernels()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)  # its own group, by start_new_session
                self._process.wait()


class Page:
    """One notebook open in one page of the browser."""

    def __init__(self, context: Any, lab: Lab, name: str, kernel: bool = True):
        self.lab, self.name = lab, name
        self.page = context.new_page()
        self.errors: list[str] = []
        self.foreign: list[str] = []
        ours = (f"http://127.0.0.1:{lab.port}/", "data:", "blob:")
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("request", lambda r: None if r.url.startswith(ours) else self.foreign.append(r.url))
        self.page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/{name}?token={lab.token}&reset")
        self.wait_until_open(kernel)

    def wait_until_open(self, kernel: bool = True) -> None:
        """Wait for the notebook and its session: a run asked for before that is dropped without a word."""
        self.page.wait_for_function(
            "() => window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell')", timeout=60_000
        )
        if kernel:
            self.page.evaluate("""async () => { const app = window.jupyterapp; await app.restored;
                const w = app.shell.currentWidget; await w.revealed; await w.context.ready;
                await w.sessionContext.ready; await w.sessionContext.session.kernel.info; }""")

    def run(self, index: int, wait: bool = True) -> None:
        """Run a code cell, and wait for its end unless told not to."""
        self.page.evaluate(
            """([i, wait]) => { const w = window.jupyterapp.shell.currentWidget;
            w.content.activeCellIndex = i; w.content.deselectAll();
            const done = window.jupyterapp.commands.execute('notebook:run-cell');
            return wait ? done.then(() => null) : null; }""",
            [index, wait],
        )

    def out(self, index: int) -> Any:
        """The output area of a cell; the whole cell's source would hold the words that one looks for."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".jp-OutputArea").first

    def command(self, name: str, arguments: dict[str, object] | None = None) -> None:
        """Carry out a command of JupyterLab's."""
        self.page.evaluate(
            "([n, a]) => window.jupyterapp.commands.execute(n, a).then(() => null)", [name, arguments or {}]
        )

    def theme(self, name: str) -> None:
        """Switch to `Light` or `Dark`; it stays for later tests, as the server keeps it."""
        self.command("apputils:change-theme", {"theme": f"JupyterLab {name}"})
        self.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {name}']", state="attached")

    def save(self) -> Any:
        """Save the notebook and read it from the disk."""
        import nbformat

        self.command("docmanager:save")
        return nbformat.read(self.lab.root / self.name, 4)

    def shot(self, name: str, index: int) -> None:
        """Take a picture, if SHOTS names a folder for it."""
        if folder := os.environ.get("SHOTS"):
            self.out(index).scroll_into_view_if_needed()
            self.page.screenshot(path=Path(folder) / f"{re.sub(r'[^a-zA-Z0-9-]+', '-', name)}.png")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pytest.importorskip("jupyterlab")
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        absent = "needs Chromium: apt-get install --no-install-recommends chromium fonts-dejavu-core"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(absent)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(lab: Lab, browser: Any) -> Iterator[Callable[..., Page]]:
    """Open a notebook by its name, made of the given cells unless it is there already."""
    context = browser.new_context(viewport={"width": 1100, "height": 700})
    context.set_default_timeout(30_000)
    opened: list[Page] = []

    def open_(name: str, cells: list[str] | None = None, kernel: bool = True) -> Page:
        if cells is not None:
            lab.write(name, cells)
        opened.append(Page(context, lab, name, kernel=kernel))
        return opened[-1]

    yield open_
    context.close()
    lab.end_kernels()
    assert [url for page in opened for url in page.foreign] == [], "a page asked for something from elsewhere"
