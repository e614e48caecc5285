"""Starting, failing and ending, on small stand-in servers."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.serve.address import reached_at
from eagle3_serving.serve.server import HOST, Server, ServerCommand, claim_port, last_lines, log_directory

# Answers /health after starting a child that would outlive it.
GOOD = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GOOD
DYING = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid)
print("INFO loading")
print("ValueError: the weights are missing")
sys.exit(3)
"""
SILENT = "import time; print('still loading', flush=True); time.sleep(600)"
PARENT = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
from eagle3_serving.serve.server import Server, ServerCommand
command = ServerCommand("stand-in", [sys.executable, "-c", sys.argv[1], "{port}"])
with Server(command, Path(sys.argv[2]), quiet=True, grace_s=1.0) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


def command(script: str) -> ServerCommand:
    return ServerCommand("stand-in", [sys.executable, "-c", script, "{port}"])


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def child_of(log: Path) -> int:
    return int(log.read_text().split("child ")[1].split()[0])


def ends(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize("script", [GOOD, STUBBORN])
def test_nothing_is_left_after_the_block(script: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Server(command(script), log, quiet=True, grace_s=0.5) as server:
        pid, child = server.pid, child_of(log)
        assert alive(pid) and alive(child)
        server.stop()
    assert ends(pid) and ends(child)


def test_nothing_is_left_after_an_exception(tmp_path: Path) -> None:
    log = tmp_path / "log"
    pids = []
    with pytest.raises(KeyboardInterrupt), Server(command(GOOD), log, quiet=True) as server:
        pids += [server.pid, child_of(log)]
        raise KeyboardInterrupt
    assert all(ends(pid) for pid in pids)


@pytest.mark.parametrize(
    ("number", "script"),
    [(signal.SIGTERM, GOOD), (signal.SIGINT, GOOD), (signal.SIGKILL, GOOD), (signal.SIGKILL, STUBBORN)],
)
def test_nothing_is_left_after_a_signal(number: signal.Signals, script: str, tmp_path: Path) -> None:
    """SIGKILL, which the out-of-memory killer sends too, leaves us no word to say: a warden ends the group."""
    log = tmp_path / "log"
    argv = [sys.executable, "-c", PARENT, script, str(log)]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        child = child_of(log)
        parent.send_signal(number)
        try:
            parent.wait(30)
        finally:
            parent.kill()  # or the with block waits for it without end
    assert ends(pid) and ends(child)


def test_a_server_that_dies_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(CheckError, match=r"exit code 3.*the weights are missing") as caught:
        Server(command(DYING), log, quiet=True).__enter__()
    assert "\n" not in str(caught.value)
    assert ends(child_of(log))


def test_a_server_that_never_answers_is_ended(tmp_path: Path) -> None:
    server = Server(command(SILENT), tmp_path / "log", ready_s=1.0, quiet=True)
    with pytest.raises(CheckError, match=r"not ready in 1 s: still loading"):
        server.__enter__()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as owner:
        owner.bind((HOST, 0))
        owner.listen()
        port = owner.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            Server(command(GOOD), tmp_path / "log", port=port, quiet=True).__enter__()


def test_a_port_that_nobody_wished_for_is_none_that_connections_are_given() -> None:
    ports = {claim_port() for _ in range(20)}
    assert len(ports) > 10 and max(ports) < 32768


def test_a_server_that_found_its_port_taken_and_stays_is_told_at_once(tmp_path: Path) -> None:
    said = "while attempting to bind on address ('127.0.0.1', %s): address already in use"
    script = f"import sys; print({said!r} % sys.argv[1], flush=True)\n{SILENT}"
    begun = time.monotonic()
    with pytest.raises(CheckError, match=r"stand-in found port \d+ taken: start it again"):
        Server(command(script), tmp_path / "log", quiet=True, ready_s=60).__enter__()
    assert time.monotonic() - begun < 30


def test_a_port_out_of_range_is_named() -> None:
    with pytest.raises(InputError, match="port 70000"):
        claim_port(70000)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("node-1", "http://node-1:80"),
    ],
)
def test_this_machine_reaches_a_server_wherever_it_listens(host: str, url: str) -> None:
    assert reached_at(host, 80) == url


def test_a_server_may_listen_everywhere(tmp_path: Path) -> None:
    made = ServerCommand(
        "stand-in", [sys.executable, "-c", GOOD.replace("127.0.0.1", "0.0.0.0"), "{port}"], {}, "0.0.0.0"
    )
    with Server(made, tmp_path / "log", quiet=True) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"


def test_a_host_of_another_machine_is_named() -> None:
    with pytest.raises(InputError, match=r"port 8000 cannot be used at 192\.0\.2\.1 \("):  # an address kept for books
        claim_port(8000, "192.0.2.1")


def test_a_missing_program_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot start stand-in"):
        Server(ServerCommand("stand-in", ["no-such-program"]), tmp_path / "log", quiet=True).__enter__()


def test_last_lines_prefer_errors(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "one\n(Engine pid=3) ERROR 11-24 01:02:03 [core.py:9] RuntimeError: two\nRuntimeError: two\n\nthree\n"
    )
    assert last_lines(log) == ["RuntimeError: two"]
    log.write_text("one\n\ntwo\n")
    assert last_lines(log) == ["one", "two"]
    assert last_lines(tmp_path / "none") == []


def test_logs_are_kept_only_after_a_failure() -> None:
    with log_directory("test") as folder:
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(CheckError), log_directory("test") as folder:
        raise CheckError("x")
    assert folder.is_dir()
    folder.rmdir()
