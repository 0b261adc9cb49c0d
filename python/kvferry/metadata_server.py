"""The command that runs a metadata server, by which the engines of a cluster find each other.

    kvferry metadata-server --port 8080

It prints the connection string that engines are initialized with, and runs until SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import signal

from kvferry._bindings import Functions, kvferry_metadata_server_options_t
from kvferry._command import status
from kvferry._command.declaration import Command, CommandError, option
from kvferry._command.output import Output
from kvferry._ffi import c_string, last_error, python_string
from kvferry._library import LibraryError, load
from kvferry._managed import Managed
from kvferry._options import positive, takes

TOKEN = "MC_METADATA_HTTP_TOKEN"  # engines send the token that this variable has, also Mooncake's
ENDING = {signal.SIGTERM, signal.SIGINT}


class ServerError(RuntimeError):
    """The server cannot run, or has lost something; the text says why."""


class Server(Managed):
    """A metadata server of this process, which runs until it is stopped. close() stops it without an error."""

    def __init__(self, options: kvferry_metadata_server_options_t, client_ca: bytes | None = None) -> None:
        """Start it. ServerError says why it cannot run."""
        self._functions = functions = load()
        text = ctypes.create_string_buffer(4096)
        handle = functions.kvferry_metadata_server_start_mutual(ctypes.byref(options), client_ca, text, len(text))
        if not handle:
            raise ServerError(reason(functions))
        super().__init__(functools.partial(functions.kvferry_metadata_server_stop, handle))
        self.address = python_string(text.value)  # the connection string for engines, also on other machines

    def stop(self) -> None:
        """Stop it, if it runs. ServerError when its latest changes are in no snapshot; it has stopped nevertheless."""
        if self._release():  # a code
            raise ServerError(reason(self._functions))


def reason(functions: Functions) -> str:
    """Why the last call failed. The command's message names the metadata server, so its name is left out here."""
    return last_error(functions).replace("metadata server: ", "", 1)


def options(arguments: argparse.Namespace) -> kvferry_metadata_server_options_t:
    """The command's options as the library takes them; ValueError for a text that C cannot have."""
    texts = {name: c_string(getattr(arguments, name) or "", name) for name in TEXTS}
    return kvferry_metadata_server_options_t(
        **texts,
        port=arguments.port,
        max_keys=arguments.max_keys,
        max_value=arguments.max_value,
        max_bytes=arguments.max_bytes,
        max_connections=arguments.max_connections,
    )


# The levels of Mooncake's mooncake_http_metadata_server, as MC_LOG_LEVEL has them.
LOG_LEVELS = {"DEBUG": "TRACE", "INFO": "INFO", "WARNING": "WARNING", "ERROR": "ERROR", "CRITICAL": "ERROR"}

TEXTS = ("host", "path", "snapshot", "token", "tls_cert", "tls_key")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """The command. It has failed when it cannot run or has lost changes, not when a signal ended it."""
    # Blocked signals wait for sigwait(): one that comes early is not lost, and none interrupts the start or the end.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    if arguments.log_level is not None:
        os.environ["MC_LOG_LEVEL"] = LOG_LEVELS[arguments.log_level]
    try:
        server = Server(options(arguments), c_string(arguments.tls_client_ca or "", "tls_client_ca"))
        try:
            out.text(server.address)
            out.result({"address": server.address})
            signal.sigwait(ENDING)
        finally:
            server.stop()
    except (LibraryError, ServerError, OSError, ValueError) as e:
        raise CommandError(str(e)) from e
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return status.OK


@takes("a port, from 0 to 65535")
def port(text: str) -> int:
    """A port, or 0. ValueError for anything else."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError(text)
    return number


COMMAND = Command(
    name="metadata-server",
    help="run the metadata server of a cluster",
    description="Run an HTTP metadata server, compatible with Mooncake's, and print the connection string that engines"
    " are initialized with. SIGTERM and SIGINT end it. /health and /metrics show its state. The options of Mooncake's"
    " mooncake_http_metadata_server, --host, --port and --log-level, mean the same here.",
    run=run,
    options=(
        option("--host", default="", help="address to listen on (all addresses)"),
        option("--port", type=port, default=8080, help="port to listen on; 0 for any free port (%(default)s)"),
        option(
            "--log-level",
            choices=tuple(LOG_LEVELS),
            help="least severe lines that are logged, as Mooncake's server has it (MC_LOG_LEVEL)",
        ),
        option("--path", default="/metadata", help="path of requests for metadata (%(default)s)"),
        option(
            "--max-keys", type=positive, default=100_000, metavar="N", help="maximum number of entries (%(default)s)"
        ),
        option(
            "--max-value", type=positive, default="1M", metavar="BYTES", help="maximum size of a value (%(default)s)"
        ),
        option(
            "--max-bytes",
            type=positive,
            default="1G",
            metavar="BYTES",
            help="maximum size of all entries (%(default)s)",
        ),
        option(
            "--max-connections",
            type=positive,
            default=1024,
            metavar="N",
            help="maximum number of open connections, and half of the limit of open files at most (%(default)s)",
        ),
        option(
            "--snapshot",
            metavar="FILE",
            help="also keep the entries in this file, and start with the entries that it has",
        ),
        option(
            "--token",
            default=os.environ.get(TOKEN),
            help=f"bearer token that requests for metadata must have. The variable {TOKEN} is safer: other users of"
            " the machine can see the arguments of a command",
        ),
        option("--tls-cert", metavar="FILE", help="PEM file with the certificates; the server then speaks HTTPS"),
        option("--tls-key", metavar="FILE", help="PEM file with the private key of the certificate"),
        option(
            "--tls-client-ca",
            metavar="FILE",
            help="PEM file with certificates; requests for metadata must then have a client certificate that one of"
            " them vouches for",
        ),
    ),
)
