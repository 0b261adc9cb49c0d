"""Each function of AscendCL fails at its first, middle and last use, on either side of a transfer.

Who uses the engine sees one call fail. Why is in the log of the engine whose device it was. Before and after it, all
goes well; and when the engine has ended, its devices have nothing of it left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from support import npus
from support.memory import Memory, Span, addresses, apply, transfer
from support.npus import NPUS, Release, simulate
from support.peers import Peers
from support.spans import scattered
from support.world import QUICK

SIZE = (1 << 20) + 4099
BLOCK_SIZE = 1 << 18  # bytes of a staging block
SMALL = scattered([4096, 1, 700, 16384, 65] * 12)
BIG = [(3, 5, SIZE - 5)]  # more than one staging block
STEPS = tuple((place, opcode, spans) for spans in (SMALL, BIG) for place in NPUS for opcode in ("write", "read"))

FUNCTIONS = (
    "aclrtSetDevice",
    "aclrtMalloc",
    "aclrtMallocHost",
    "aclrtCreateStream",
    "aclrtCreateEvent",
    "aclrtMemcpyAsync",
    "aclrtRecordEvent",
    "aclrtDestroyEvent",
    "aclrtDestroyStream",
    "aclrtFreeHost",
    "aclrtFree",
    "aclrtResetDevice",
)
NEWER = (*FUNCTIONS, "aclrtMemcpyBatchAsync", "aclrtSynchronizeEventWithTimeout")
OLDER = (*FUNCTIONS, "aclrtSynchronizeStreamWithTimeout")
ONCE = ("aclInit", "aclrtGetDeviceCount")  # called until they have succeeded in a process
USED = {"newer": NEWER, "older": OLDER}
STAGES = [(release, role) for release in USED for role in ("initiator", "target")]
ON_PURPOSE = "a fault on purpose"  # what the simulator's aclGetRecentErrMsg says


@dataclass
class Course:
    """What came of one life of an engine with faults."""

    report: dict[str, Any]  # of the simulator, after the engine had ended
    failed: list[str] = field(default_factory=list)  # the steps that did

    @property
    def happened(self) -> bool:
        return bool(self.report["faults"])


class Stage:
    """An engine with memory on two devices, on which things go wrong, and a healthy one with host memory.

    Both processes live on; each course is an engine of its own. `initiating` is whether the first one starts the
    transfers.
    """

    def __init__(self, peers: Peers, release: Release, initiating: bool) -> None:
        self.faulty = peers("ours", **release.settings, **QUICK, KVFERRY_STAGING_BLOCK_SIZE=str(BLOCK_SIZE))
        self.healthy = peers("ours", **QUICK).create()
        self.far = self.healthy.memory(SIZE)
        self.release = release
        self.initiating = initiating

    def run(self, faults: str, tolerated: Collection[str] = ()) -> Course:
        """Live through all steps with these faults. In the end the memories are compared, and the devices looked at:
        nothing may be left there, nor misused but for what is tolerated."""
        self.faulty.create()
        nears = {place: self.faulty.memory(SIZE, i, register=False, place=place) for i, place in enumerate(NPUS)}
        self.far.fill(7)
        simulate(self.faulty, "reset_counters")
        simulate(self.faulty, "faults", faults)
        failed = [step for place in NPUS for step in self._register(nears[place], place)]
        for place, opcode, spans in STEPS:
            failed += self._move(nears[place], opcode, spans)
        self.faulty.ask("drop", engine="main")
        course = Course(simulate(self.faulty, "report"), failed)
        simulate(self.faulty, "faults", "")
        for memory in (*nears.values(), self.far):
            memory.check()
        self.faulty.ask("free_regions")
        npus.check_nothing_left(simulate(self.faulty, "report"), tolerated)
        return course

    def _register(self, memory: Memory, place: str) -> Iterator[str]:
        """Register memory; once more where that fails. Yield what failed."""
        location = self.release.location(place) or "*"
        if self.faulty.call("register_memory", memory.address, memory.size, location) != 0:
            yield f"registering memory on {place}"
            self.faulty.register(memory, location)

    def _move(self, near: Memory, opcode: str, spans: Sequence[Span]) -> Iterator[str]:
        """Move spans, and do the same to the models. What failed may have left anything where it was to write, and is
        yielded."""
        local, remote = (near, self.far) if self.initiating else (self.far, near)
        code = local.peer.move(remote.peer.name, opcode, addresses(local, remote, spans))["code"]
        if code == 0:
            apply(opcode, local, remote, spans)
            return
        yield f"{opcode} of {len(spans)} blocks between {near.region} and the healthy peer gave {code}"
        for a, b, length in spans:
            memory, offset = (remote, b) if opcode == "write" else (local, a)
            memory.adopt(offset, length)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, module_peers: Peers) -> Iterator[Stage]:
    """The stage of one of STAGES."""
    release, role = request.param
    stage = Stage(module_peers, request.getfixturevalue(release), role == "initiator")
    yield stage
    stage.faulty.kill()
    stage.healthy.kill()


@pytest.fixture(scope="module")
def healthy_course(stage: Stage) -> Course:
    """What the engine does when nothing goes wrong."""
    course = stage.run("")
    assert course.failed == []
    return course


def fail_at(stage: Stage, function: str, number: int) -> Course:
    """Have a function fail at that use, or at the last one where this course has fewer."""
    course = stage.run(f"{function}:{number}")
    while not course.happened:
        number = min(number - 1, course.report["calls"][function])
        course = stage.run(f"{function}:{number}")
    return course


def check_reason(log: str, course: Course, *texts: str) -> None:
    for text in texts:
        assert text in log, f"{text!r} is not in the log; what failed: {course.failed}"


@pytest.mark.parametrize(
    "stage,function",
    [(stage, function) for stage in STAGES for function in USED[stage[0]]],
    indirect=["stage"],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
def test_a_function_that_fails_fails_one_call_with_the_reason(
    stage: Stage, healthy_course: Course, function: str
) -> None:
    uses = healthy_course.report["calls"][function]
    assert uses > 0, f"{function} is not used any more"
    for number in sorted({1, (uses + 1) // 2, uses}):
        stage.faulty.begin_test()
        course = fail_at(stage, function, number)
        assert len(course.failed) <= 1
        check_reason(stage.faulty.log(), course, function, ON_PURPOSE)


@pytest.mark.parametrize("stage", STAGES, indirect=True, ids="-".join)
@pytest.mark.parametrize("number", (1, 5))
def test_a_copy_that_fails_on_the_device_fails_one_call_with_the_reason(stage: Stage, number: int) -> None:
    """It was queued without an error: who waits for it is told."""
    stage.faulty.begin_test()
    course = stage.run(f"exec:{number}")
    assert len(course.failed) <= 1
    check_reason(stage.faulty.log(), course, "aclrtSynchronize", "failed with 507013", "operation")


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage[0] == "newer"], indirect=True, ids="-".join)
def test_a_stream_that_cannot_be_waited_for_either_is_replaced(stage: Stage) -> None:
    """After a copy has failed the engine waits for the others of the stream, which fails too: then it is busy, perhaps,
    when it is destroyed."""
    stage.faulty.begin_test()
    course = stage.run("exec:2,aclrtSynchronizeStreamWithTimeout:1", tolerated=["busy_destroy"])
    assert len(course.failed) <= 1
    check_reason(stage.faulty.log(), course, "aclrtSynchronizeStreamWithTimeout", ON_PURPOSE)


@pytest.mark.parametrize("stage", STAGES, indirect=True, ids="-".join)
def test_every_function_that_the_engine_uses_is_made_to_fail(stage: Stage, healthy_course: Course) -> None:
    used = {name for name, count in healthy_course.report["calls"].items() if count}
    elsewhere = {*ONCE, "aclrtPointerGetAttributes", "aclrtMemcpy"}  # the last is the tests' own
    assert used <= elsewhere.union(OLDER if stage.release.older else NEWER)


@pytest.mark.parametrize("fault", ("aclInit:2", "aclrtGetDeviceCount:1"))
def test_a_library_that_does_not_begin_well_may_do_so_later(start_peer: Peers, fault: str) -> None:
    faulty = npus.start(start_peer, KVFERRY_SIM_FAULTS=fault).create()
    near = faulty.memory(SIZE, 1, register=False, place="npu:0")  # for which the tests have called aclInit
    far = start_peer("ours").create().memory(SIZE, 2)
    assert faulty.call("register_memory", near.address, near.size) < 0
    for text in (fault.split(":")[0], ON_PURPOSE):
        assert text in faulty.log()
    transfer(faulty.memory(SIZE, 3), far, "write", SMALL)
    faulty.register(near)
    transfer(near, far, "write", SMALL)
    far.check()


def test_device_memory_is_never_taken_for_host_memory(start_peer: Peers) -> None:
    """Not when the library cannot say where it is, and nobody else does."""
    faulty = npus.start(start_peer).create()
    near = faulty.memory(SIZE, 1, register=False, place="npu:0")
    simulate(faulty, "faults", "aclrtPointerGetAttributes:1+")
    assert faulty.call("register_memory", near.address, near.size) < 0
    faulty.register(near, "npu:0")
    transfer(near, start_peer("ours").create().memory(SIZE, 2), "write", SMALL)


@pytest.mark.parametrize("role", ("initiator", "target"))
@pytest.mark.parametrize(
    "faults,reason",
    (
        ("aclrtMallocHost:1+", "aclrtMallocHost"),
        ("aclrtCreateStream:1+", "aclrtCreateStream"),
        ("aclrtCreateEvent:1+", "aclrtCreateEvent"),
        ("aclrtMemcpyAsync:1+,aclrtMemcpyBatchAsync:1+", ON_PURPOSE),
        ("aclrtRecordEvent:1+", "aclrtRecordEvent"),
        ("aclrtSynchronizeEventWithTimeout:1+", "aclrtSynchronizeEventWithTimeout"),
        ("exec:1+", "failed with 507013"),
    ),
)
def test_while_a_function_fails_host_memory_is_moved_and_afterwards_all_is(
    start_peer: Peers, faults: str, reason: str, role: str
) -> None:
    faulty, healthy = npus.start(start_peer, **QUICK).create(), start_peer("ours", **QUICK).create()
    near, host, far = faulty.memory(SIZE, 1, place="npu:0"), faulty.memory(SIZE, 2), healthy.memory(SIZE, 3)
    initiator, target = (near, far) if role == "initiator" else (far, near)
    simulate(faulty, "faults", faults)
    for opcode in ("write", "read"):
        assert initiator.peer.move(target.peer.name, opcode, addresses(initiator, target, SMALL))["code"] < 0
    assert reason in faulty.log()
    transfer(host, far, "write", SMALL)
    far.check()
    simulate(faulty, "faults", "")
    near.fill(4)
    far.fill(5)
    transfer(initiator, target, "write", SMALL)
    near.check()
    far.check()
    npus.end(faulty)
