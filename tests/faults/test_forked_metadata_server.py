"""A metadata server that is stopped while a child that was forked without exec has the descriptors of its sockets."""

from __future__ import annotations

from support.inprocess import run_python


def test_a_metadata_server_that_was_stopped_refuses_and_a_new_one_gets_its_port() -> None:
    done = run_python(
        """
import socket
from kvferry._command.main import make_parser
from kvferry.metadata_server import COMMAND, Server, options
parser = make_parser([COMMAND])
def serve(port):
    return Server(options(parser.parse_args(["metadata-server", "--host=127.0.0.1", f"--port={port}"])))
server = serve(0)
port = int(server.address.split(":")[2].split("/")[0])
idle = socket.create_connection(("127.0.0.1", port))
idle.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
assert b"200" in idle.recv(4096)
reading, writing = os.pipe()
if os.fork() == 0:
    os.close(writing)
    idle.close()
    os.read(reading, 1)
    os._exit(0)
server.stop()
assert idle.recv(4096) == b""
try:
    socket.create_connection(("127.0.0.1", port))
except ConnectionRefusedError:
    pass
else:
    raise AssertionError("somebody listens")
serve(port).stop()
""",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert done.returncode == 0, done.stderr
