"""Ctrl-C at each step of the Python code that makes or ends an engine: no engine is left without an owner."""

from __future__ import annotations

import pytest

from support.inprocess import run_python

COMMON = """
import itertools
from kvferry._engine import Engine

def listening():
    sockets = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            sockets.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            pass  # it was the folder's
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return sum(row[3] == "0A" and f"socket:[{row[9]}]" in sockets for row in rows)

def make():
    return Engine("127.0.0.1", "P2PHANDSHAKE", None, memory)

class Interrupt:
    '''Raises KeyboardInterrupt in this thread, as Ctrl-C does, at step `at` of the code in the files.'''

    def __init__(self, at, files, opcodes):
        self.at, self.files, self.opcodes = at, files, opcodes

    def __enter__(self):
        self.steps = 0
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        frame.f_trace_opcodes = self.opcodes
        self.steps += 1
        if self.steps == self.at:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self.trace

class Memory:
    pass

memory = Memory()
"""


def test_wherever_ctrl_c_ends_the_making_of_an_engine_no_engine_is_left() -> None:
    done = run_python(
        COMMON
        + """
for at in itertools.count(1):
    try:
        with Interrupt(at, "kvferry/_engine.py", False) as interrupt:
            made = make()
        del made
        break
    except KeyboardInterrupt:
        pass
print(interrupt.steps > 10)
while listening():  # what was abandoned ends by itself
    time.sleep(0.05)
print("none left")
""",
    )
    assert (done.returncode, done.stdout) == (0, "True\nnone left\n"), done.stderr


ENDS = {"dropped": "del engine", "closed and dropped": "engine.close()"}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_wherever_ctrl_c_arrives_while_an_engine_ends_it_has_ended_and_its_memory_goes(end: str) -> None:
    """What is raised while an object goes is no exception of the program: Python prints it."""
    done = run_python(
        COMMON
        + f"""
import weakref
FILES = "kvferry/_engine.py", "kvferry/_ending.py", "kvferry/_managed.py", "weakref.py"
make().close()
sys.unraisablehook = lambda _: None
for at in itertools.count(1):
    engine = make()
    try:
        with Interrupt(at, FILES, True) as i:
            {end}
    except KeyboardInterrupt:
        pass
    engine = None
    if listening():
        sys.exit(f"an engine is left after step {{at}}")
    if i.steps < at:
        break
print(at > 20)
make().close()  # and lets go of what Ctrl-C has kept
kept, memory = weakref.ref(memory), None
print(kept())
""",
    )
    assert (done.returncode, done.stdout) == (0, "True\nNone\n"), done.stderr
