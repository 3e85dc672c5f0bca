"""llama.cpp's converter in forks of one process that has imported its libraries already.

A conversion of a tiny model takes a tenth of a second, importing what the converter needs five.
Run as a script, this file stands for ``convert_child.py``: it hands the converter's arguments, its
environment and its three files to the warm process and ends with the fork's exit status. Another
converter than the pinned one gets a process of its own, as all do outside the tests.
"""

import array
import contextlib
import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM = "EWQ_TEST_CONVERTER"
"""Names the warm process's socket, the module it stands for, and the script it has imported."""


class WarmConverter:
    """Takes the place of the module ``convert_child`` in ``ewq.gguf.convert``.

    The warm process starts at the first conversion and ends when this one does, whose end closes
    the pipe it listens to.
    """

    def __init__(self, child, script):
        self._child = child
        self._script = str(script.resolve())
        self._folder = tempfile.TemporaryDirectory(prefix="ewq-tests-converter-")
        self._server = None

    def __getattr__(self, name):
        return getattr(self._child, name)

    @property
    def __file__(self):
        if self._server is None:
            warm = [str(Path(self._folder.name) / "socket"), self._child.__file__, self._script]
            command = [sys.executable, "-P", __file__, "--serve", *warm]
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE)
            os.environ[WARM] = os.pathsep.join(warm)
        return __file__

    def close(self):
        if self._server is not None:
            self._server.communicate()
        self._folder.cleanup()


def serve(path, child, script):
    """Fork a conversion for each connection until standard input ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        module = load(child, Path(script))
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                request, files = receive(connection)
                status = fork(module, request, files)
                with contextlib.suppress(BrokenPipeError):
                    connection.send(status.to_bytes(4, "big", signed=True))


def receive(connection):
    files = array.array("i")
    first, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * files.itemsize))
    files.frombytes(ancillary[0][2])
    with connection.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(first, "big"))), list(files)


def load(child, script):
    """``convert_child`` as a module, with all that it and the converter import."""
    spec = importlib.util.spec_from_file_location("convert_child", child)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.forbid_code_of_models()
    sys.path.insert(0, str(script.parent))
    importlib.import_module(script.stem)
    return module


def fork(module, request, files):
    """Run the converter in a child; its exit status."""
    process = os.fork()
    if process == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        # What the converter raises ends the child as it would end any script.
        script, *arguments = request["arguments"]
        return module.main(Path(script), arguments) or sys.exit(0)
    for file in files:
        os.close(file)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ask(path, arguments):
    """Let the warm process convert; its exit status."""
    request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
    }
    body = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        for _ in range(600):
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                connection.connect(path)
                break
            time.sleep(0.1)
        socket.send_fds(connection, [len(body).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(body)
        return int.from_bytes(connection.recv(4), "big", signed=True)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(*sys.argv[2:])
    else:
        socket_path, child, script = os.environ[WARM].split(os.pathsep)
        if Path(sys.argv[1]).resolve() != Path(script):
            os.execv(sys.executable, [sys.executable, "-P", child, *sys.argv[1:]])
        sys.exit(ask(socket_path, sys.argv[1:]))
