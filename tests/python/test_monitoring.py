"""What docs/ offers for Prometheus and Grafana, and a real Prometheus that scrapes many engines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import devices
from support.peer import Peer
from support.peers import Peers, unavailable
from support.ports import free_ports
from support.process import until

DOCS = Path(__file__).parents[2] / "docs"
ALERTS, DASHBOARD = DOCS / "alerts.yaml", DOCS / "grafana.json"
PROCESSES, ENGINES = 4, 16  # in all, and in each
VARIABLES = {"$__rate_interval": "1m", "$engine": ".*", "$instance": ".*"}
SIZE = 1 << 16


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    """Peers of one test."""
    started = Peers(tmp_path)
    yield started
    started.close()


def program(name: str) -> str:
    """The path of a program of Debian's package prometheus."""
    return shutil.which(name) or unavailable(f"{name} is missing: it is in Debian's package prometheus")


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard that show something."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """The expressions of the dashboard, with its variables set to all engines."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def names(text: str) -> set[str]:
    """The metrics that a text names."""
    return set(re.findall(r"\b(?:kvferry|process|go)_[a-z0-9_]+\b", text))


def exchange(initiator: Peer, target: Peer, place: str) -> None:
    """Move bytes, and fail to."""
    there, here = target.memory(SIZE), initiator.memory(SIZE, place=place)
    assert initiator.move(target.name, "write", [[here.address, there.address, SIZE]])["code"] == 0
    assert initiator.call("transfer_sync_read", target.name, here.address, there.address + (1 << 40), 100) != 0


def scrape(port: int) -> str:
    """The metrics of a process."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_the_dashboard_is_complete() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "kvferry" and dashboard["schemaVersion"] >= 36
    assert {v["name"] for v in dashboard["templating"]["list"]} == {"datasource", "instance", "engine"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken and grid["x"] + grid["w"] <= 24, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"], panel
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
        assert all(target["legendFormat"] for target in panel["targets"])


def test_the_dashboard_and_the_alerts_name_metrics_that_exist(peers: Peers) -> None:
    ports = free_ports(2)
    settings = [devices.settings(KVFERRY_METRICS_LISTEN=f"127.0.0.1:{port}") for port in ports]
    target, initiator = (peers("ours", **each).create() for each in settings)
    exchange(initiator, target, "npu:0")
    exist = {line.split("{")[0].split(" ")[0] for port in ports for line in scrape(port).splitlines() if line[0] != "#"}
    used = names(" ".join(queries())) | names(ALERTS.read_text())
    assert len(used) > 40
    assert used - exist == set()


def labels_of(scraped: str) -> dict[str, set[str]]:
    """The labels of each metric, and those that Prometheus adds."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)\{(.*)\} ", scraped, re.MULTILINE):
        found.setdefault(name, {"instance", "job"}).update(re.findall(r'(\w+)="', labels))
    return found


def test_the_dashboard_and_the_alerts_name_labels_that_these_metrics_have(peers: Peers) -> None:
    ports = free_ports(2)
    settings = [devices.settings(KVFERRY_METRICS_LISTEN=f"127.0.0.1:{port}") for port in ports]
    target, initiator = (peers("ours", **each).create() for each in settings)
    exchange(initiator, target, "npu:0")
    has = labels_of("".join(scrape(port) for port in ports))
    alerts = [text.split("\n      - alert")[0] for text in ALERTS.read_text().split("expr:")[1:]]
    parts = [part for text in (*queries(), *alerts) for part in re.split(r"\b(?=(?:sum|count) )", text)]
    checked = 0
    for part in parts:
        for metric in names(part) & has.keys():
            used = {label for by in re.findall(r"\bby \(([^)]*)\)", part) for label in re.split(r", *", by)}
            used |= set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', part))
            assert used <= has[metric], (metric, part)
            checked += len(used)
    assert checked > 100
    for panel in panels():
        for query in panel["targets"]:
            grouped = re.findall(r"\bby \(([^)]*)\)", query["expr"])
            shown = set(re.findall(r"{{ *(\w+) *}}", query["legendFormat"]))
            for by in grouped:
                assert shown <= set(re.split(r", *", by)), (panel["title"], query)


def test_promtool_finds_nothing_wrong_with_the_alerts() -> None:
    done = subprocess.run([program("promtool"), "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


ENGINE = 'instance="a:1",engine="e"'
# For each alert the series that raise it, minute by minute. Everything else is as in HEALTHY.
RAISED = {
    "KvferryTransfersFail": {f'kvferry_request_failures_total{{{ENGINE},reason="stalled"}}': "0+6x30"},
    "KvferryPeerUnreachable": {f'kvferry_peer_connect_failures_total{{{ENGINE},peer="p"}}': "0+6x30"},
    "KvferryTransfersStand": {f'kvferry_peer_bytes_total{{{ENGINE},peer="p",path="tcp"}}': "1000+0x30"},
    "KvferryBatchesSlow": {f'kvferry_batch_duration_seconds_bucket{{{ENGINE},le="8.388608"}}': "0+1x30"},
    "KvferryConnectionsLost": {f'kvferry_peer_connections_lost_total{{{ENGINE},peer="p"}}': "0+60x30"},
    "KvferrySessionsFull": {f'kvferry_sessions_refused_total{{{ENGINE},reason="full"}}': "0+6x30"},
    "KvferryHandshakesFull": {f'kvferry_handshakes_refused_total{{{ENGINE},reason="full"}}': "0+6x30"},
    "KvferryStagingFull": {f'kvferry_staging_leased_bytes{{{ENGINE},device="npu:0",direction="out"}}': "96+0x30"},
    "KvferryDeviceCopiesFail": {
        f'kvferry_staging_failed_jobs_total{{{ENGINE},device="npu:0",direction="out"}}': "0+6x30"
    },
    "KvferryMetadataFails": {f'kvferry_metadata_request_failures_total{{{ENGINE},request="fetch"}}': "0+20x30"},
    "KvferrySecurityRefusals": {f"kvferry_security_refused_peers_total{{{ENGINE}}}": "0+6x30"},
    "KvferrySecretsNotReloaded": {f'kvferry_security_reloads_total{{{ENGINE},result="failed"}}': "0+6x30"},
    "KvferryNotificationsRefused": {f"kvferry_notifications_refused_total{{{ENGINE}}}": "0+6x30"},
    "KvferryDescriptorsRunOut": {'process_open_fds{instance="a:1"}': "95+0x30"},
    "KvferryLogLinesDropped": {'kvferry_log_lines_dropped_total{instance="a:1"}': "0+6x30"},
}
HEALTHY = {series: "0+0x30" for raised in RAISED.values() for series in raised} | {
    f"kvferry_engine_info{{{ENGINE}}}": "1+0x30",
    f"kvferry_bytes_in_flight{{{ENGINE}}}": "100+0x30",
    f'kvferry_peer_bytes_total{{{ENGINE},peer="p",path="tcp"}}': "0+1000x30",
    f'kvferry_request_failures_total{{{ENGINE},reason="cancelled"}}': "0+6x30",
    f'kvferry_batch_duration_seconds_bucket{{{ENGINE},le="8.388608"}}': "0+60x30",
    f'kvferry_batch_duration_seconds_bucket{{{ENGINE},le="16.777216"}}': "0+60x30",
    f'kvferry_batch_duration_seconds_bucket{{{ENGINE},le="+Inf"}}': "0+60x30",
    f'kvferry_staging_pool_bytes{{{ENGINE},device="npu:0",direction="out"}}': "100+0x30",
    f'kvferry_staging_waits_total{{{ENGINE},device="npu:0",direction="out"}}': "0+120x30",
    f'kvferry_metadata_request_duration_seconds_count{{{ENGINE},request="fetch"}}': "0+60x30",
    'process_open_fds{instance="a:1"}': "50+0x30",
    'process_max_fds{instance="a:1"}': "100+0x30",
    'process_open_fds{instance="other:1"}': "100+0x30",  # of a program without engines
    'process_max_fds{instance="other:1"}': "100+0x30",
}


def test_each_alert_is_raised_by_what_it_is_for_and_by_nothing_else(tmp_path: Path) -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    assert alerts == list(RAISED)
    cases = []
    for raised in ("", *alerts):
        series = {**HEALTHY, **RAISED.get(raised, {})}
        cases.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                # One query for all of them: which alerts are there, of those that are raised.
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "25m",
                        "exp_samples": [{"labels": f'{{alertname="{raised}"}}', "value": 1}] if raised else [],
                    }
                ],
            }
        )
    file = tmp_path / "cases.yaml"
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": cases}))  # YAML, too
    done = subprocess.run([program("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A server that scrapes these ports every two seconds, with the alerts, until it is closed."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        (own,) = free_ports(1)
        self.address = f"127.0.0.1:{own}"
        config = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {"job_name": "kvferry", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # YAML, too
        self.log = folder / "prometheus.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={self.address}",
                    "--enable-feature=exemplar-storage",
                ],
                stdout=log,
                stderr=log,
            )

    def ask(self, what: str, **parameters: Any) -> Any:
        """What the server's API answers."""
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            told = json.load(answer)
        assert told["status"] == "success" and not told.get("warnings"), told
        return told["data"]

    def query(self, expression: str) -> list[Any]:
        """The values of an expression now."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def number(self, expression: str) -> float:
        """The only value of an expression; 0 before there is one, or a server."""
        try:
            found = self.query(expression)
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return 0.0
        return float(found[0]["value"][1]) if found else 0.0

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_real_prometheus_scrapes_64_engines(peers: Peers, tmp_path: Path) -> None:
    program("prometheus")
    ports = free_ports(PROCESSES)
    processes = []
    for port in ports:
        settings = {"KVFERRY_METRICS_LISTEN": f"127.0.0.1:{port}", "KVFERRY_TRACE_FILE": f"{tmp_path}/%p.json"}
        peer = peers("ours", **devices.settings(**settings)).create()
        for number in range(1, ENGINES):
            name = peer.name
            assert peer.try_create(engine=f"engine {number}") == 0
            peer.name = name
        processes.append(peer)
    initiator, target = processes[:2]
    exchange(initiator, target, "cuda:0")
    server = Prometheus(tmp_path, ports)
    try:
        # On a slow machine a scrape runs out of time now and then, and its series are gone until the next one.
        until(lambda: server.number("count(kvferry_engine_info)") == PROCESSES * ENGINES, 60, "all engines are scraped")
        until(lambda: server.number("min(up)") == 1, 60, "all scrapes succeed")
        names_of = "count(count by (engine) (kvferry_sessions_limit))"
        until(lambda: server.number(names_of) == PROCESSES * ENGINES, 60, "each engine has its name")
        until(lambda: server.number("sum(kvferry_peer_bytes_total)") == SIZE, 60, "all bytes are counted")
        for expression in queries():
            server.query(expression)
        until(lambda: all(rule["health"] == "ok" for rule in rules(server)), 60, "all alerts are evaluated")
        assert len(rules(server)) == len(RAISED)
        exemplars = server.ask(
            "query_exemplars", query="kvferry_batch_duration_seconds_bucket", start="0", end="99999999999"
        )
        traces = {x["labels"]["trace_id"] for series in exemplars for x in series["exemplars"]}
    finally:
        server.close()
    assert initiator.close() == 0
    trace = json.loads((tmp_path / f"{initiator.pid}.json").read_text())
    batches = {event["args"]["trace_id"] for event in trace["traceEvents"] if event.get("cat") == "batch"}
    assert traces and traces <= batches


def rules(server: Prometheus) -> list[Any]:
    """The alerts, as the server sees them."""
    return [rule for group in server.ask("rules")["groups"] for rule in group["rules"]]
