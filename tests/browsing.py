"""What the tests in a real browser share: JupyterLab, a page in Chromium, a way to ask the kernel behind it.

Chromium is Debian's (`apt-get install chromium`) or what CHROMIUM names; playwright drives it and downloads nothing.
"""

import ast
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

# no news, all cells in the page (else those off the screen are left out), nothing written back
LAB_SETTINGS = {
    "@jupyterlab/apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "@jupyterlab/notebook-extension/tracker": '{"windowingMode": "none"}',
    "@jupyterlab/docmanager-extension/plugin": '{"autosave": false}',
}
OWN_FOLDERS = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
}
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
# JupyterLab shows an exception as it shows a warning, as text on stderr: told by its first line
TRACEBACK = '[data-mime-type="application/vnd.jupyter.stderr"]:has-text("Traceback (most recent call last)")'
PATIENCE = 240_000  # ms for anything a quiet machine does in seconds
CELL_PATIENCE = 300_000


def find_chromium() -> str:
    """Path of a Chromium or Chrome; "" if there is none."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), "")


def what_is_missing() -> str:
    """Why no browser can be driven here; "" if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright (pip install -e '.[dev]')"
    return "" if find_chromium() else "Chromium (apt-get install chromium, or its path in CHROMIUM)"


def launch(playwright):
    """Chromium without a window."""
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    return playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=flags)


def free_port() -> int:
    """A port of this machine nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(command, address, home, folder, **environment):
    """Run a server until the block is left; waits until `address` answers."""
    told = {name: str(home / sub) for name, sub in OWN_FOLDERS.items()} | environment
    # kernels behave as for a user: an error is shown, and nothing knows that a test is running
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "MPLBACKEND")}
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=inherited | told, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_for(address, process, log)
        yield
    finally:
        process.terminate()  # it ends its kernels itself
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(address, process, log):
    until = time.monotonic() + PATIENCE / 1000
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended at once: {log.read_text(errors='replace')[-800:]}")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@contextlib.contextmanager
def jupyterlab(folder, home, **environment):
    """JupyterLab on `folder`, with settings of its own; gives a function from file name to address."""
    for name, text in LAB_SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    port, token = free_port(), secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--port-retries=0"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
    ]
    base = f"http://127.0.0.1:{port}"
    with server(command, f"{base}/api/status?token={token}", home, folder, **environment):
        yield lambda name: f"{base}/lab/tree/{name}?reset&token={token}"


def open_notebook(page, address):
    """Open a notebook and wait for its kernel: before it is connected, "run all" would do nothing, silently."""
    page.goto(address)
    page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=PATIENCE)
    page.locator(f"{PANEL} .jp-Notebook .jp-Cell").first.wait_for(timeout=PATIENCE)
    page.wait_for_function(
        """() => { const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
                   return kernel && kernel.status === 'idle' && kernel.connectionStatus === 'connected'; }""",
        timeout=PATIENCE,
    )


def run_all(page):
    """Run all cells and wait until the last has been answered."""
    page.evaluate(
        """() => { window.ran = false;
            window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.ran = true; }); }"""
    )
    page.wait_for_function("() => window.ran", timeout=CELL_PATIENCE)
    page.wait_for_function(
        """(panel) => {
            const found = [...document.querySelector(panel).querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
                .filter(prompt => !prompt.matches('.jp-Placeholder-prompt')).map(prompt => prompt.textContent);
            return found.length && found.every(text => !text.includes('*')); }""",
        arg=PANEL,
        timeout=PATIENCE,
    )


def check_no_errors(page):
    """Raise if a cell or a callback failed: its traceback, or the message in place of a widget's picture."""
    for kind in (TRACEBACK, ".srlab-error"):
        found = page.locator(kind)
        assert not found.count(), f"an error on the page: {found.first.inner_text()[-500:]}"


def ask(page, expression):
    """Value of a Python expression in the kernel behind the page; `expression` must have a literal as repr."""
    code = "import ipywidgets, srlab.widgets, numpy"
    answer = page.evaluate(
        """async ([code, expression]) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const request = {code, silent: true, store_history: false, user_expressions: {answer: expression}};
            const reply = await kernel.requestExecute(request).done;
            return reply.content.user_expressions?.answer ?? reply.content; }""",
        [code, expression],
    )
    assert answer["status"] == "ok", f"the kernel answers {answer} to {expression}"
    return ast.literal_eval(answer["data"]["text/plain"])
