"""vLLM's servers for prefill and for decode, with either engine under each, answer as one server by itself does."""

from __future__ import annotations

import itertools
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import pytest

from real import programs
from real.forks import Nursery
from real.hosts import Host, HostsError, connect
from real.servers import TOKENS, Prompt, Server
from real.tiny_words import FIRST_WORD, WORDS
from support.peer import environment
from support.peers import unavailable

LIMIT = 1200  # seconds that a test may take on a busy machine
MODEL_LIMIT = 200.0
MIXES = (
    [("kvferry", "kvferry"), ("kvferry", "mooncake"), ("mooncake", "kvferry")] if programs.WHOLE else [("kvferry",) * 2]
)
LENGTHS = (33, 70, 128, 301)  # tokens: of one block and a bit, of several, of whole blocks
whole_only = pytest.mark.skipif(not programs.WHOLE, reason="not in the short form")

transfers = itertools.count(1)
names = itertools.count(1)


class Answers(NamedTuple):
    """What one server by itself answers."""

    prompts: list[Prompt]
    answers: list[str]
    other: Prompt  # as long as the last prompt
    crossed: str  # the answer to the last prompt with the last token of the other


class Pair:
    """A server for prefill and one for decode."""

    def __init__(self, prefill: Server, decode: Server) -> None:
        self.prefill = prefill
        self.decode = decode

    def complete(self, prompts: Sequence[Prompt], at_decode: Sequence[Prompt] = ()) -> list[str]:
        """Complete prompts, all at once, as the proxy of vLLM does. Decode may be told other prompts than prefill."""
        engine = self.prefill.engine_id()
        answers = []
        for prompt, other in zip(prompts, at_decode or prompts):
            transfer = f"transfer {next(transfers)}"
            self.prefill.ask(
                prompt, 1, {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer}
            ).result()
            answers.append(
                self.decode.ask(
                    other,
                    TOKENS,
                    {
                        "do_remote_decode": False,
                        "do_remote_prefill": True,
                        "transfer_id": transfer,
                        "remote_engine_id": engine,
                        "remote_bootstrap_addr": self.prefill.source,
                    },
                )
            )
        return [answer.result() for answer in answers]

    def close(self) -> None:
        self.prefill.close()
        self.decode.close()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def model(scratch: Path) -> Path:
    command = [str(programs.interpreter("vllm")), "-m", "real.tiny_model", str(scratch / "model")]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, timeout=MODEL_LIMIT)
    return scratch / "model"


@pytest.fixture(scope="module")
def nursery(scratch: Path) -> Iterator[Nursery]:
    env = environment({"TORCHDYNAMO_DISABLE": "1"}, ours=False)
    made = Nursery(programs.interpreter("vllm"), "real.vllm_server", env, scratch / "import.log")
    yield made
    made.close()


def start(
    nursery: Nursery,
    model: Path,
    engines: tuple[str, str],
    ranks: int = 1,
    hosts: Sequence[Optional[Host]] = (None, None),
) -> Pair:
    """Start a pair of servers and wait until they are up; prefill may be on several ranks."""
    logs = [model.parent / f"server {next(names)}.log" for _ in engines]
    prefill = Server(nursery, model, logs[0], "kv_producer", engines[0], ranks, hosts[0])
    decode = Server(nursery, model, logs[1], "kv_consumer", engines[1], 1, hosts[1])
    made = Pair(prefill, decode)
    try:
        prefill.wait()
        decode.wait()
    except BaseException:
        made.close()
        raise
    return made


@pytest.fixture(scope="module")
def alone(nursery: Nursery, model: Path) -> Answers:
    chance = random.Random(7)
    prompts = [[chance.randrange(FIRST_WORD, WORDS) for _ in range(length)] for length in LENGTHS]
    other = [chance.randrange(FIRST_WORD, WORDS) for _ in prompts[-1]]
    server = Server(nursery, model, model.parent / "alone.log")
    try:
        server.wait()
        asked = [server.ask(prompt, TOKENS) for prompt in (*prompts, prompts[-1][:-1] + other[-1:], other)]
        *answers, crossed, not_this = [answer.result() for answer in asked]
    finally:
        server.close()
    assert len({*answers, crossed, not_this}) == len(answers) + 2  # or nothing could be told from them
    return Answers(prompts, answers, other, crossed)


@pytest.fixture(scope="module", params=MIXES, ids="-".join)
def pair(request: pytest.FixtureRequest, nursery: Nursery, model: Path, alone: Answers) -> Iterator[Pair]:
    made = start(nursery, model, request.param)
    yield made
    made.close()


@pytest.mark.timeout(LIMIT)
def test_decode_answers_as_one_server_by_itself(pair: Pair, alone: Answers) -> None:
    assert pair.complete(alone.prompts) == alone.answers


@pytest.mark.timeout(LIMIT)
def test_decode_computes_with_what_it_received(pair: Pair, alone: Answers) -> None:
    """Prefill is given one prompt and decode another: all but the last token must be the former's."""
    assert pair.complete(alone.prompts[-1:], [alone.other]) == [alone.crossed]


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("side", ("prefill", pytest.param("decode", marks=whole_only)))
def test_a_side_that_was_killed_serves_again_once_it_is_restarted(pair: Pair, alone: Answers, side: str) -> None:
    assert pair.complete(alone.prompts[:1]) == alone.answers[:1]
    server: Server = getattr(pair, side)
    server.kill()
    server.start()
    server.wait()
    assert pair.complete(alone.prompts) == alone.answers


@whole_only
@pytest.mark.timeout(LIMIT)
def test_prefill_on_two_ranks_serves_decode_on_one(nursery: Nursery, model: Path, alone: Answers) -> None:
    made = start(nursery, model, ("kvferry", "kvferry"), ranks=2)
    try:
        assert made.complete(alone.prompts) == alone.answers
        assert made.complete(alone.prompts[-1:], [alone.other]) == [alone.crossed]
    finally:
        made.close()


@pytest.fixture
def two_hosts() -> Iterator[list[Host]]:
    made = []
    try:
        for number in (1, 2):
            made.append(Host(number))
        connect(made)
        yield made
    except HostsError as reason:
        unavailable(f"network namespaces need root: {reason}")
    finally:
        for host in made:
            host.close()


@whole_only
@pytest.mark.timeout(LIMIT)
def test_servers_on_two_hosts(nursery: Nursery, model: Path, alone: Answers, two_hosts: list[Host]) -> None:
    made = start(nursery, model, ("kvferry", "kvferry"), hosts=two_hosts)
    try:
        assert made.complete(alone.prompts) == alone.answers
        assert made.complete(alone.prompts[-1:], [alone.other]) == [alone.crossed]
    finally:
        made.close()
