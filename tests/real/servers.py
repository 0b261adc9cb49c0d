"""vLLM's servers: one that does all by itself, or one for prefill and one for decode, with an engine under each."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from real import hosts, programs
from real.forks import Nursery
from support import ports
from support.peer import environment

START_LIMIT = 400.0  # seconds; an idle machine needs ten
ANSWER_LIMIT = 120.0
END_LIMIT = 30.0
TOKENS = 12  # that a request asks for
LOG_TAIL = 6000  # characters

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # or it compiles C++ for minutes
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
ARGUMENTS = (
    *("--served-model-name", "tiny", "--dtype", "float32", "--block-size", "32", "--max-model-len", "512"),
    *("--max-num-seqs", "8", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20)),
    "--no-enable-prefix-caching",  # or decode may have what it is to be sent
)

Prompt = list[int]


class Server:
    """A server. `role` is "kv_producer" for prefill, "kv_consumer" for decode, "" for one that does both by itself."""

    def __init__(
        self,
        nursery: Nursery,
        model: Path,
        log: Path,
        role: str = "",
        engine: str = "",
        ranks: int = 1,
        host: Optional[hosts.Host] = None,
    ) -> None:
        self._address = host.address if host else "127.0.0.1"
        self._network = host.namespace if host else ""
        self.engine = engine
        self._log = log
        self._arguments = [
            "--model",
            str(model),
            "--host",
            self._address,
            *ARGUMENTS,
            "--tensor-parallel-size",
            str(ranks),
        ]
        self._settings = {**SETTINGS, "VLLM_HOST_IP": self._address, "KVFERRY_TESTS_NETWORK": self._network}
        if role:
            config = {"kv_connector": "MooncakeConnector", "kv_role": role}
            self._arguments += ["--kv-transfer-config", json.dumps(config)]
            self._settings.update(programs.engine_settings(engine))
        self._nursery = nursery
        self._clients = concurrent.futures.ThreadPoolExecutor(8, initializer=hosts.enter, initargs=(self._network,))
        self.start()

    def start(self) -> None:
        """Start it, for the first time or again. It is up when `wait` says so."""
        held = ports.hold_range(2)
        self._port, self._bootstrap = map(ports.port_of, held)
        for s in held:
            s.close()
        settings = {**self._settings, "VLLM_MOONCAKE_BOOTSTRAP_PORT": str(self._bootstrap)}
        env = environment(settings, ours=self.engine == "kvferry")
        self._child = self._nursery.fork(env, [*self._arguments, "--port", str(self._port)], self._log)

    def wait(self) -> None:
        """Wait until it answers, and see to it that the engine is the one that it is to have."""
        deadline = time.monotonic() + START_LIMIT
        while not self._clients.submit(self._healthy).result():
            assert self._child.poll() is None, f"the server ended with {self._child.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"the server is not up after {START_LIMIT:g} s:\n{self.log()}"
            time.sleep(0.1)
        if self.engine:
            used = {name for name, folder in programs.ENGINES.items() if str(folder) in self._libraries()}
            assert used == {self.engine}, f"it uses {used}, not {self.engine}"

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}:{self._port}/health", timeout=5):
                return True
        except OSError:
            return False

    def _libraries(self) -> str:
        """Return what is mapped into the server's processes, which are one group."""
        texts = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(process.name)) == self._child.pid:
                    texts.append((process / "maps").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended since
        return "".join(texts)

    @property
    def source(self) -> str:
        """Where a decode server finds this prefill server."""
        return f"http://{self._address}:{self._bootstrap}"

    def engine_id(self) -> str:
        """Return the id of a prefill server's engine, another one after each start."""
        said = self._clients.submit(fetch, f"{self.source}/query").result()
        return str(said["0"]["engine_id"])

    def ask(
        self, prompt: Prompt, tokens: int, transfer: Optional[Mapping[str, Any]] = None
    ) -> concurrent.futures.Future[str]:
        """Start to complete a prompt, with parameters of the transfer of its KV cache."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        body.update(ignore_eos=True, skip_special_tokens=False)
        if transfer:
            body["kv_transfer_params"] = dict(transfer)
        return self._clients.submit(completion, f"http://{self._address}:{self._port}/v1/completions", body)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_TAIL:]

    def kill(self) -> None:
        """End all of its processes as SIGKILL does."""
        self._child.send_signal(signal.SIGKILL)
        self._child.wait(END_LIMIT)

    def close(self) -> None:
        self.kill()
        self._clients.shutdown()


def fetch(url: str, body: Optional[Mapping[str, Any]] = None) -> Any:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as e:
        raise AssertionError(f"{url}: {e}: {e.read().decode(errors='replace')}") from e


def completion(url: str, body: Mapping[str, Any]) -> str:
    text: str = fetch(url, body)["choices"][0]["text"]
    assert len(re.findall(r"w\d+", text)) == body["max_tokens"], f"not {body['max_tokens']} tokens: {text}"
    return text
