"""The exit statuses of the command. The man page has this table."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
NO_READER = 141
TERMINATED = 143

MEANINGS = {
    OK: "The command did what it was asked for. kvferry doctor found no error; it may have warnings.",
    FAILED: "What was asked for failed, or kvferry doctor found an error.",
    USAGE: "The arguments are wrong.",
    INTERRUPTED: "Ctrl-C (SIGINT) ended the command.",
    NO_READER: "Nobody reads the output any more.",
    TERMINATED: "SIGTERM ended the command.",
}
