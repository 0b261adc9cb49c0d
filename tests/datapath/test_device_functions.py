"""Each function of AscendCL and of CUDA fails at its first, middle and last use, on either side of a transfer.

Who uses the engine sees one call fail. Why is in the log of the engine whose device it was. Before and after it, all
goes well; and when the engine has ended, its devices have nothing of it left.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from support import devices
from support.devices import Release, simulate
from support.memory import Memory, Span, addresses, apply, transfer
from support.peer import Peer
from support.peers import Peers
from support.spans import scattered
from support.world import QUICK

pytestmark = pytest.mark.devices

SIZE = (1 << 20) + 4099
BLOCK_SIZE = 1 << 18  # bytes of a staging block
SMALL = scattered([4096, 1, 700, 16384, 65] * 12)
BIG = [(3, 5, SIZE - 5)]  # more than one staging block
COPIES_THAT_ARE_WAITED_FOR = "d2h=25/60,h2d=25/60"  # for KVFERRY_SIM_COST

ASCENDCL = (
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
CUDA = (
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent_v2",
    "cuThreadExchangeStreamCaptureMode",
    "cuMemHostAlloc",
    "cuStreamCreateWithPriority",
    "cuEventCreate",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuStreamSynchronize",
    "cuEventDestroy_v2",
    "cuStreamDestroy_v2",
    "cuMemFreeHost",
    "cuCtxPopCurrent_v2",
    "cuDevicePrimaryCtxRelease_v2",
)
KERNELS = ("cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel", "cuModuleUnload")
USED = {
    ("npu", "newer"): (*ASCENDCL, "aclrtMemcpyBatchAsync", "aclrtSynchronizeEventWithTimeout"),
    ("npu", "older"): (*ASCENDCL, "aclrtSynchronizeStreamWithTimeout"),
    ("cuda", "newer"): (*CUDA, *KERNELS),
    ("cuda", "older"): CUDA,
}
# An older CUDA is to copy in batches, which it lacks: so it copies each block by itself.
COPY = {("cuda", "older"): {"KVFERRY_DEVICE_COPY": "batch"}}
# Those that are made to fail: of an older CUDA the ones that a newer one uses less.
FAILING = {**USED, ("cuda", "older"): ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2")}

# Others that the engine uses: calls that are made until one has succeeded in a process, look-ups of where memory is,
# and calls that it can do without.
ELSEWHERE = {
    "npu": ("aclInit", "aclrtGetDeviceCount", "aclrtPointerGetAttributes"),
    "cuda": ("cuInit", "cuDeviceGetCount", "cuPointerGetAttributes", "cuCtxGetStreamPriorityRange"),
}
OF_THE_TESTS = ("aclrtMemcpy", "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2")
STAGES = [(kind, release, role) for kind, release in USED for role in ("initiator", "target")]

# What AscendCL says of a fault, in its own words, and CUDA, which has none but those of the error.
ON_PURPOSE = {"npu": "a fault on purpose", "cuda": "999: CUDA_ERROR_UNKNOWN"}


@dataclass
class Course:
    """What came of one life of an engine with faults."""

    report: dict[str, Any]  # of the simulator, after the engine had ended
    failed: list[str] = field(default_factory=list)  # the steps that did

    @property
    def happened(self) -> bool:
        return bool(self.report["faults"])


class Stage:
    """An engine with memory on two devices of a kind, on which things go wrong, and a healthy one with host memory.

    Both processes live on; each course is an engine of its own. `initiating` is whether the first one starts the
    transfers.
    """

    def __init__(self, peers: Peers, kind: str, release: Release, initiating: bool) -> None:
        copy = COPY.get((kind, "older" if release.older else "newer"), {})
        settings = {**release.settings, **QUICK, **copy, "KVFERRY_STAGING_BLOCK_SIZE": str(BLOCK_SIZE)}
        self.faulty = peers("ours", **{**settings, "KVFERRY_SIM_COST": COPIES_THAT_ARE_WAITED_FOR})
        self.healthy = peers("ours", **QUICK).create()
        self.far = self.healthy.memory(SIZE)
        self.kind = kind
        self.places = (f"{kind}:0", f"{kind}:1")
        self.release = release
        self.initiating = initiating

    def simulate(self, control: str, *arguments: Any) -> Any:
        return simulate(self.faulty, self.kind, control, *arguments)

    def run(self, faults: str, tolerated: Collection[str] = ()) -> Course:
        """Live through all steps with these faults. In the end the memories are compared, and the devices looked at:
        nothing may be left there, nor misused but for what is tolerated."""
        self.faulty.create()
        nears = {place: self.faulty.memory(SIZE, i, register=False, place=place) for i, place in enumerate(self.places)}
        self.far.fill(7)
        self.simulate("reset_counters")
        self.simulate("faults", faults)
        failed = [step for place in self.places for step in self._register(nears[place], place)]
        for spans, place, opcode in itertools.product((SMALL, BIG), self.places, ("write", "read")):
            failed += self._move(nears[place], opcode, spans)
        self.faulty.ask("drop", engine="main")
        course = Course(self.simulate("report"), failed)
        self.simulate("faults", "")
        for memory in (*nears.values(), self.far):
            memory.check()
        self.faulty.ask("free_regions")
        devices.check_nothing_left(self.simulate("report"), tolerated)
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
    kind, release, role = request.param
    stage = Stage(module_peers, kind, request.getfixturevalue(release), role == "initiator")
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


def check_reason(peer: Peer, course: Course, *texts: str) -> None:
    for text in texts:
        assert peer.logs(text), f"{text!r} is not in the log; what failed: {course.failed}"


@pytest.mark.parametrize(
    "stage,function",
    [(stage, function) for stage in STAGES for function in FAILING[stage[:2]]],
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
        check_reason(stage.faulty, course, function.removesuffix("_v2"), ON_PURPOSE[stage.kind])


@pytest.mark.parametrize("stage", [s for s in STAGES if s[0] == "npu"], indirect=True, ids="-".join)
@pytest.mark.parametrize("number", (1, 5))
def test_a_copy_that_fails_on_the_device_fails_one_call_with_the_reason(stage: Stage, number: int) -> None:
    """It was queued without an error: who waits for it is told."""
    stage.faulty.begin_test()
    course = stage.run(f"exec:{number}")
    assert len(course.failed) <= 1
    check_reason(stage.faulty, course, "aclrtSynchronize", "failed with 507013", "operation")


@pytest.mark.parametrize("stage", [s for s in STAGES if s[:2] == ("npu", "newer")], indirect=True, ids="-".join)
def test_a_stream_that_cannot_be_waited_for_either_is_replaced(stage: Stage) -> None:
    """After a copy has failed the engine waits for the others of the stream, which fails too: then it is busy, perhaps,
    when it is destroyed."""
    stage.faulty.begin_test()
    course = stage.run("exec:2,aclrtSynchronizeStreamWithTimeout:1", tolerated=["busy_destroy"])
    assert len(course.failed) <= 1
    check_reason(stage.faulty, course, "aclrtSynchronizeStreamWithTimeout", ON_PURPOSE["npu"])


@pytest.mark.parametrize("stage", STAGES, indirect=True, ids="-".join)
def test_every_function_that_the_engine_uses_is_made_to_fail(stage: Stage, healthy_course: Course) -> None:
    used = {name for name, count in healthy_course.report["calls"].items() if count}
    release = "older" if stage.release.older else "newer"
    assert used <= {*USED[stage.kind, release], *ELSEWHERE[stage.kind], *OF_THE_TESTS}


@pytest.mark.parametrize(
    "kind,fault",
    (("npu", "aclInit:1"), ("npu", "aclrtGetDeviceCount:1"), ("cuda", "cuInit:1"), ("cuda", "cuDeviceGetCount:1")),
)
def test_a_library_that_does_not_begin_well_may_do_so_later(start_peer: Peers, kind: str, fault: str) -> None:
    faulty = devices.start(start_peer).create()
    near = faulty.memory(SIZE, 1, register=False, place=f"{kind}:0")
    simulate(faulty, kind, "faults", fault)
    far = start_peer("ours").create().memory(SIZE, 2)
    assert faulty.call("register_memory", near.address, near.size) < 0
    for text in (fault.split(":")[0], ON_PURPOSE[kind]):
        assert faulty.logs(text)
    transfer(faulty.memory(SIZE, 3), far, "write", SMALL)
    faulty.register(near)
    transfer(near, far, "write", SMALL)
    far.check()


@pytest.mark.parametrize("kind,function", (("npu", "aclrtPointerGetAttributes"), ("cuda", "cuPointerGetAttributes")))
def test_device_memory_is_never_taken_for_host_memory(start_peer: Peers, kind: str, function: str) -> None:
    """Not when the library cannot say where it is, and nobody else does."""
    faulty = devices.start(start_peer).create()
    near = faulty.memory(SIZE, 1, register=False, place=f"{kind}:0")
    simulate(faulty, kind, "faults", f"{function}:1+")
    assert faulty.call("register_memory", near.address, near.size) < 0
    faulty.register(near, f"{kind}:0")
    transfer(near, start_peer("ours").create().memory(SIZE, 2), "write", SMALL)


@pytest.mark.parametrize("role", ("initiator", "target"))
@pytest.mark.parametrize(
    "kind,faults,reason",
    (
        ("npu", "aclrtMallocHost:1+", "aclrtMallocHost"),
        ("npu", "aclrtCreateStream:1+", "aclrtCreateStream"),
        ("npu", "aclrtCreateEvent:1+", "aclrtCreateEvent"),
        ("npu", "aclrtMemcpyAsync:1+,aclrtMemcpyBatchAsync:1+", ON_PURPOSE["npu"]),
        ("npu", "aclrtRecordEvent:1+", "aclrtRecordEvent"),
        ("npu", "aclrtSynchronizeEventWithTimeout:1+", "aclrtSynchronizeEventWithTimeout"),
        ("npu", "exec:1+", "failed with 507013"),
        ("cuda", "cuDevicePrimaryCtxRetain:1+", "cuDevicePrimaryCtxRetain"),
        ("cuda", "cuMemHostAlloc:1+", "cuMemHostAlloc"),
        ("cuda", "cuStreamCreateWithPriority:1+", "cuStreamCreateWithPriority"),
        ("cuda", "cuEventCreate:1+", "cuEventCreate"),
        (
            "cuda",
            "cuLaunchKernel:1+,cuMemcpyBatchAsync_v2:1+,cuMemcpyHtoDAsync_v2:1+,cuMemcpyDtoHAsync_v2:1+",
            ON_PURPOSE["cuda"],
        ),
        ("cuda", "cuEventRecord:1+", "cuEventRecord"),
        ("cuda", "cuEventQuery:1+", "cuEventQuery"),
        ("cuda", "exec:1+", "CUDA_ERROR_ILLEGAL_ADDRESS"),
    ),
)
def test_while_a_function_fails_host_memory_is_moved_and_afterwards_all_is(
    start_peer: Peers, kind: str, faults: str, reason: str, role: str
) -> None:
    faulty = devices.start(start_peer, **QUICK, KVFERRY_DEVICE_PREPARE="0").create()  # the transfers make everything
    healthy = start_peer("ours", **QUICK).create()
    near, host, far = faulty.memory(SIZE, 1, place=f"{kind}:0"), faulty.memory(SIZE, 2), healthy.memory(SIZE, 3)
    initiator, target = (near, far) if role == "initiator" else (far, near)
    simulate(faulty, kind, "faults", faults)
    for opcode in ("write", "read"):
        assert initiator.peer.move(target.peer.name, opcode, addresses(initiator, target, SMALL))["code"] < 0
    assert faulty.logs(reason)
    transfer(host, far, "write", SMALL)
    far.check()
    simulate(faulty, kind, "faults", "")
    near.fill(4)
    far.fill(5)
    transfer(initiator, target, "write", SMALL)
    near.check()
    far.check()
    devices.end(faulty)
