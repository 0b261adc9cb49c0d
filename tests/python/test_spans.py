"""Spans of transfers, by the real OpenTelemetry SDK."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags

from kvferry import Engine, EngineClosed, Layout, PeerUnreachable, RangeRejected, TransferError, _spans, plan
from kvferry._spans import Span
from mooncake.engine import TransferEngine
from support.inprocess import run_python
from support.native import NOWHERE, SIZE, Couple, couple, some_bytes
from support.process import until
from support.rawpeer import BASE, RawTarget, swallow
from support.traces import Trace

pytestmark = pytest.mark.each_path

LIMIT = 30.0  # seconds that anything here may take


class Traced:
    """A span of the program, and the spans that were made in its context."""

    def __init__(self, provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter
        self.parent = provider.get_tracer("program").start_span("serve a request")
        self.context = trace.set_span_in_context(self.parent)

    def spans(self) -> tuple[ReadableSpan, ...]:
        return tuple(self._exporter.get_finished_spans())

    def one(self) -> ReadableSpan:
        (span,) = self.spans()
        self._exporter.clear()
        return span


@pytest.fixture(scope="session")
def provider() -> TracerProvider:
    """The program's, which it sets once."""
    made = TracerProvider()
    trace.set_tracer_provider(made)
    return made


@pytest.fixture(scope="session")
def exporter(provider: TracerProvider) -> InMemorySpanExporter:
    made = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(made))
    return made


@pytest.fixture
def traced(provider: TracerProvider, exporter: InMemorySpanExporter) -> Traced:
    exporter.clear()
    return Traced(provider, exporter)


@pytest.fixture
def pair(path: str) -> Iterator[Couple]:
    with couple() as made:
        yield made


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_transfer_is_a_child_of_the_context_with_its_times_and_its_way(
    pair: Couple, traced: Traced, path: str, kind: str
) -> None:
    before = time.time_ns()
    move = pair.peer.read if kind == "read" else pair.peer.write
    assert move(bytearray(SIZE), pair.region, context=traced.context).result(LIMIT) == SIZE
    after = time.time_ns()
    span = traced.one()
    assert (span.name, span.kind) == (f"kvferry.{kind}", SpanKind.CLIENT)
    assert span.parent == traced.parent.get_span_context()
    assert span.start_time is not None and span.end_time is not None
    assert before - 1000 <= span.start_time < span.end_time <= after + 1000  # the engine's clock counts from its start
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope is not None and span.instrumentation_scope.name == "kvferry"
    found = attributes(span)
    assert found.pop("network.peer.address") and found.pop("network.transport") in ("tcp", "unix")
    assert isinstance(found.pop("network.peer.port", 1), int)
    host, port = pair.far.name.split(":")
    assert found == {
        "server.address": host,
        "server.port": int(port),
        "kvferry.bytes": SIZE,
        "kvferry.total_bytes": SIZE,
        "kvferry.requests": 1,
        "kvferry.runs": 1,
        "kvferry.path": ("host",) if path == "samehost" else ("tcp",),
    }


def test_the_address_is_that_of_the_data_connection(monkeypatch: pytest.MonkeyPatch, traced: Traced) -> None:
    monkeypatch.setenv("KVFERRY_SAME_HOST", "0")
    with couple() as pair:
        pair.peer.write(b"12345678", pair.region[:8], context=traced.context).result(LIMIT)
        found = attributes(traced.one())
        assert (found["network.transport"], found["network.peer.address"]) == ("tcp", "127.0.0.1")
        assert found["network.peer.port"] not in (0, found["server.port"])


def test_requests_and_runs_are_counted(pair: Couple, traced: Traced) -> None:
    parts = [(some_bytes(64), pair.region[i * 128 : i * 128 + 64]) for i in range(5)]
    locals_, remotes = zip(*parts)
    pair.peer.write(list(locals_), list(remotes), context=traced.context).result(LIMIT)
    found = attributes(traced.one())
    assert (found["kvferry.requests"], found["kvferry.runs"], found["kvferry.bytes"]) == (5, 5, 320)

    mine = some_bytes(2 * 8 * 4).reshape(2, 8, 4)
    theirs = pair.memory[: mine.nbytes].reshape(2, 8, 4)
    made = plan(Layout(mine, "block token dim").blocks([0, 1]), Layout(theirs, "block token dim").blocks([1, 0]), 16)
    pair.peer.write(made, context=traced.context).result(LIMIT)
    found = attributes(traced.one())
    assert (found["kvferry.requests"], found["kvferry.runs"], found["kvferry.bytes"]) == (1, 2, 64)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_blocking_plan_has_a_span_for_each_peer(pair: Couple, traced: Traced, kind: str) -> None:
    half = some_bytes(2 * 8 * 2 * 4).reshape(2, 8, 2, 4)
    axes = "block token head dim"
    here = Layout(half, axes).blocks([0, 1])
    parts = [pair.memory[i * 64 : i * 64 + 64].reshape(2, 8, 1, 4) for i in range(2)]
    there = [Layout(part, axes, heads=(i, 2)).blocks([0, 1]) for i, part in enumerate(parts)]
    names = [pair.far.name] * 2
    if kind == "write":
        plan(here, there, 16).write(pair.near, names, context=traced.context)
    else:
        plan(there, here, 16).read(pair.near, names, context=traced.context)
    assert all((part == half[:, :, i : i + 1]).all() for i, part in enumerate(parts))
    spans = traced.spans()
    assert [attributes(span)["kvferry.bytes"] for span in spans] == [64, 64]
    assert {span.name for span in spans} == {f"kvferry.{kind}"}


def test_a_blocking_plan_that_fails_leaves_nothing_under_way(pair: Couple, traced: Traced) -> None:
    mine = some_bytes(2 * 8 * 2 * 4).reshape(2, 8, 2, 4)
    axes = "block token head dim"
    parts = [pair.memory[i * 64 : i * 64 + 64].reshape(2, 8, 1, 4) for i in range(2)]
    there = [Layout(part, axes, heads=(i, 2)).blocks([0, 1]) for i, part in enumerate(parts)]
    made = plan(Layout(mine, axes).blocks([0, 1]), there, 16)
    with RawTarget(on_data=swallow) as silent:
        with pytest.raises(PeerUnreachable, match="refused"):
            made.write(pair.near, ["127.0.0.1:1", silent.name], context=traced.context)
        states = [(span.status.status_code, attributes(span)["error.type"]) for span in traced.spans()]
    assert sorted(states, key=str) == [
        (StatusCode.ERROR, "kvferry.Cancelled"),
        (StatusCode.ERROR, "kvferry.PeerUnreachable"),
    ]


def test_a_failure_is_the_spans_status_with_its_exception(pair: Couple, traced: Traced) -> None:
    with pytest.raises(RangeRejected) as caught:
        pair.peer.write(b"12345678", NOWHERE, context=traced.context).result(LIMIT)
    span = traced.one()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(caught.value))
    (event,) = span.events
    assert event.name == "exception" and event.timestamp == span.end_time
    assert event.attributes == {"exception.type": "kvferry.RangeRejected", "exception.message": str(caught.value)}
    found = attributes(span)
    assert (found["error.type"], found["kvferry.bytes"]) == ("kvferry.RangeRejected", 0)
    assert (found["kvferry.total_bytes"], found.get("kvferry.path")) == (8, None)


def test_a_peer_that_is_not_there_has_a_span_without_its_address(pair: Couple, traced: Traced) -> None:
    gone = pair.near.open(pair.far.name)
    gone._encoded, gone.name = b"127.0.0.1:1", "127.0.0.1:1"
    assert isinstance(gone.read(bytearray(8), 4096, context=traced.context).exception(LIMIT), PeerUnreachable)
    span = traced.one()
    found = attributes(span)
    assert (found["error.type"], found["server.port"]) == ("kvferry.PeerUnreachable", 1)
    assert "network.peer.address" not in found
    assert span.start_time and span.end_time and span.start_time <= span.end_time


def test_what_the_engine_refuses_at_once_has_a_span(pair: Couple, traced: Traced, monkeypatch: Any) -> None:
    monkeypatch.setattr(pair.near._completions, "start", lambda *_: -200)
    with pytest.raises(TransferError):
        pair.peer.write(b"12345678", pair.region[:8], context=traced.context)
    span = traced.one()
    assert span.status.status_code is StatusCode.ERROR
    assert span.start_time and span.end_time and span.start_time <= span.end_time


def test_a_transfer_that_the_program_forgets_has_its_span(pair: Couple, traced: Traced) -> None:
    pair.peer.write(some_bytes(), pair.region, context=traced.context)
    until(lambda: len(traced.spans()) == 1, LIMIT, "the span is made although nobody waits")
    assert attributes(traced.one())["kvferry.bytes"] == SIZE


def test_the_end_of_the_engine_makes_the_spans_of_what_is_under_way(traced: Traced, path: str) -> None:
    with RawTarget(on_data=swallow) as silent, Engine() as engine:
        engine.open(silent.name).write(b"12345678", BASE, context=traced.context)
        transfer = engine.open(silent.name).write(b"12345678", BASE + 8, context=traced.context)
        engine.close()
        assert isinstance(transfer.exception(0), EngineClosed)
    assert [attributes(span)["error.type"] for span in traced.spans()] == ["kvferry.EngineClosed"] * 2
    assert all(span.start_time and span.end_time and span.start_time <= span.end_time for span in traced.spans())


def test_in_an_event_loop_the_span_is_made_when_the_transfer_is_awaited(pair: Couple, traced: Traced) -> None:
    async def program() -> None:
        for _ in range(20):
            transfer = pair.peer.write(some_bytes(), pair.region, context=traced.context)
            assert await transfer == SIZE
            assert traced.one().parent == traced.parent.get_span_context()
        pair.peer.write(some_bytes(), pair.region, context=traced.context)
        while not traced.spans():
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(program(), LIMIT))
    assert "kvferry-callbacks" not in [thread.name for thread in threading.enumerate()]


def test_each_transfer_has_one_span_which_any_waiting_thread_sees(pair: Couple, traced: Traced) -> None:
    failures: list[BaseException] = []
    for _ in range(20):
        transfer = pair.peer.write(some_bytes(64), pair.region[:64], context=traced.context)

        def wait(transfer: Any = transfer) -> None:
            try:
                assert transfer.result(LIMIT) == 64
                assert len(traced.spans()) == 1
            except BaseException as e:
                failures.append(e)

        threads = [threading.Thread(target=wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        traced.one()


def test_a_tracer_that_fails_is_not_the_transfers_failure(
    pair: Couple, traced: Traced, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], str]
) -> None:
    class Failing:
        def start_span(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("a processor's mistake")

    monkeypatch.setattr(_spans, "_tracer", Failing)
    assert pair.peer.write(b"12345678", pair.region[:8], context=traced.context).result(LIMIT) == 8
    assert traced.spans() == ()
    assert "the span of a transfer was not made: RuntimeError: a processor's mistake" in logged()


def test_a_context_without_a_span_begins_a_trace(pair: Couple, traced: Traced) -> None:
    pair.peer.write(b"12345678", pair.region[:8], context=Context()).result(LIMIT)
    assert traced.one().parent is None


def test_a_trace_that_is_not_sampled_has_no_spans(pair: Couple, traced: Traced) -> None:
    ids = traced.parent.get_span_context()
    left_out = trace.NonRecordingSpan(SpanContext(ids.trace_id, ids.span_id, False, TraceFlags(0)))
    context = trace.set_span_in_context(left_out)
    assert pair.peer.write(b"12345678", pair.region[:8], context=context).result(LIMIT) == 8
    assert traced.spans() == ()


def test_the_span_and_the_trace_file_name_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, traced: Traced, path: str
) -> None:
    monkeypatch.setenv("KVFERRY_TRACE_FILE", str(tmp_path / "trace.json"))
    mine = some_bytes(64).reshape(2, 8, 4)
    with couple() as pair:
        theirs = pair.memory[:64].reshape(2, 8, 4)
        layouts = Layout(mine, "block token dim").blocks([0, 1]), Layout(theirs, "block token dim").blocks([1, 0])
        pair.peer.write(mine, pair.region[:64], context=traced.context).result(LIMIT)
        pair.peer.write(plan(*layouts, 16), context=traced.context).result(LIMIT)
        pair.peer.read(mine, pair.region[:64]).result(LIMIT)
    batches = {b["args"]["trace_id"]: b for b in Trace(tmp_path / "trace.json").of("batch") if b["args"]["bytes"]}
    ids = traced.parent.get_span_context()
    assert len(batches) == 3
    for span in traced.spans():
        batch = batches.pop(attributes(span)["kvferry.batch"])
        assert batch["args"]["traceparent"] == f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"
    ((_, other),) = batches.items()
    assert "traceparent" not in other["args"]


def test_other_things_are_no_context(pair: Couple, traced: Traced) -> None:
    wrongs: tuple[Any, ...] = (traced.parent, {}, "00-af-b7-01")
    for wrong in wrongs:
        with pytest.raises(TypeError, match="context is a Context"):
            pair.peer.write(b"12345678", pair.region[:8], context=wrong)
    made = plan(
        Layout(some_bytes(8).reshape(1, 8, 1), "block token dim").blocks([0]),
        Layout(some_bytes(8).reshape(1, 8, 1), "block token dim").blocks([0]),
        8,
    )
    mooncakes = TransferEngine()
    assert mooncakes.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    with pytest.raises(TypeError, match=r"plans take a kvferry\.Engine, not TransferEngine"):
        made.write(mooncakes, pair.far.name, context=traced.context)


def test_without_a_context_nothing_is_imported() -> None:
    program = """
from kvferry import Engine
with Engine() as near, Engine() as far:
    memory = far.register(bytearray(8))
    assert near.open(far.name).write(b"12345678", memory).result(30) == 8
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    done = run_python(program)
    assert done.returncode == 0, done.stderr


def test_without_opentelemetry_a_context_says_what_is_missing() -> None:
    program = """
from kvferry import Engine
sys.modules["opentelemetry"] = None
with Engine() as near, Engine() as far:
    memory = far.register(bytearray(8))
    peer = near.open(far.name)
    try:
        peer.write(b"12345678", memory, context={})
    except ImportError as e:
        assert 'pip install "kvferry[opentelemetry]"' in str(e), e
        raise SystemExit(17)
"""
    done = run_python(program)
    assert done.returncode == 17, done.stderr


@pytest.mark.parametrize(
    ("name", "address", "port"),
    [
        ("10.0.0.7:15000", "10.0.0.7", 15000),
        ("[fe80::1%eth0]:15000", "fe80::1%eth0", 15000),
        ("fd00::2:15858", "fd00::2", 15858),
        ("@kvferry:7", "@kvferry:7", None),
        ("decode-3", "decode-3", None),
        ("rack:decode", "rack:decode", None),
        ("a\udcffb", "a\\udcffb", None),
    ],
)
def test_names_are_addresses_and_ports(traced: Traced, name: str, address: str, port: int | None) -> None:
    found = Span(traced.context, "read", name, 0, 0)._attributes
    assert (found["server.address"], found.get("server.port")) == (address, port)
