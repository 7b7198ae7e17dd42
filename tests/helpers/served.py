"""Runs the HTTP service as a process of its own, and asks it over a socket."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

TOKEN = "a-token-of-the-tests"


def free_port():
    """A port of this machine that nobody listens to."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(port, path, content=None, token=TOKEN, timeout=60.0, body=None, headers=None):
    """(status, answer, headers) of a request: POST where there is content or a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        sent = {"Authorization": f"Bearer {token}"} | (headers or {})
        data = json.dumps(content) if body is None and content is not None else body
        connection.request("GET" if data is None else "POST", path, data, sent)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), dict(response.headers)


class Served:
    """The service over a folder of states, which can be killed and started again."""

    def __init__(self, state_dir, *options):  # of serve.py
        self.port, self._arguments = free_port(), [f"--state_dir={state_dir}", *options]
        self.log = state_dir.parent / "service.log"
        self.process = None

    def start(self, seconds=240.0):
        """Starts it and waits until it answers."""
        command = [sys.executable, "-m", "ehrwear_jax.inference.serve", "tiny", f"--port={self.port}"]
        env = os.environ | {"EHRWEAR_TOKEN": TOKEN, "JAX_PLATFORMS": "cpu"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, *self._arguments], env=env, stdout=log, stderr=log)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                if ask(self.port, "/health", timeout=5.0)[0] == 200:
                    return self
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"the service does not answer:\n{self.log.read_text()[-2000:]}")

    def kill(self):
        """Ends it at once, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """Ends it as a manager of services would."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)
