"""The kvferry command and its demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import kvferry
from kvferry import simulator
from kvferry._bindings import OPCODE_WRITE
from kvferry.demo import cache as caches
from kvferry.demo import nodes
from kvferry.demo.devices import DemoError
from support.commands import LIMIT, run, start
from support.inprocess import run_python

SMALL = ("demo", "--layers", "3", "--blocks", "5", "--block-size", "4K", "--batch", "4")


@pytest.fixture
def no_gpu() -> None:
    """Skip the test on a machine that has a GPU. This process may have loaded simulated ones."""
    done = run_python("from kvferry import gpu; sys.exit(gpu.visible_devices())", KVFERRY_CUDA="")
    if done.returncode != 0:
        pytest.skip("this machine has a GPU")


def test_the_version_is_printed() -> None:
    assert run("--version") == (0, f"kvferry {kvferry.__version__}\n", "")


SIMULATED = {
    "KVFERRY_ASCENDCL": simulator.library("npu"),
    "KVFERRY_CUDA": simulator.library("cuda"),
    "KVFERRY_SIM_DEVICES": "2",
}
WITHOUT_GPU = (("host", "host"), ("npu:0", "host"), ("npu:0", "npu:1"))
WITH_GPU = (("host", "host"), ("npu:0", "cuda:0"), ("cuda:0", "cuda:1"))


@pytest.mark.parametrize(
    ("decode", "places"), [("auto", WITH_GPU), ("gpu", WITH_GPU), ("host", WITHOUT_GPU)], ids=("auto", "gpu", "host")
)
def test_the_demo_moves_its_cache_between_all_places_both_ways_and_checks_every_byte(
    decode: str, places: tuple[tuple[str, str], ...]
) -> None:
    status, out, err = run(*SMALL, "--decode", decode, **SIMULATED)
    assert (status, err) == (0, "")
    assert "3 layers x K and V x 5 blocks of 4 KiB, 120 KiB in all" in out
    assert len(re.findall("-> .* write ", out)) == len(places)
    for here, there in places:
        # A change of layout is marked, and moves a layer at a time.
        batches, mark = (8, "") if here.split(":")[0] == there.split(":")[0] else (3, r" \*")
        for line in (f"{here} +-> {there} +write", f"{here} +<- {there} +read"):
            row = rf"^{line} +122,880 +30 +{batches} +[\d.]+ s +[\d.]+ +[\d.]+ ms +[\d.]+ ms{mark}$"
            assert re.search(row, out, re.M), out
    assert (
        "\n* with a change of layout: blocks of 128 tokens, heads first (HND) -> blocks of 16, tokens first (NHD)"
        in out
    )
    assert out.endswith("every byte checked: the digests of all 3 layers agree on both sides, in each row\n")


def test_blocks_that_are_no_heads_keep_their_layout_in_the_demo() -> None:
    status, out, err = run(*SMALL, "--block-size=5000", **SIMULATED)
    assert (status, err) == (0, "")
    assert "layout" not in out and "npu:0  -> cuda:0 write" in out


def test_one_npu_is_enough_for_the_demo() -> None:
    status, out, _ = run(*SMALL, "--decode=host", **{**SIMULATED, "KVFERRY_SIM_DEVICES": "1"})
    assert status == 0
    assert re.search("npu:0 +-> npu:0", out) and "npu:1" not in out


def test_one_gpu_is_enough_for_the_demo() -> None:
    status, out, _ = run(*SMALL, **{**SIMULATED, "KVFERRY_SIM_DEVICES": "1"})
    assert status == 0
    assert "cuda:0 -> cuda:0" in out and "cuda:1" not in out


def test_the_demo_leaves_nothing_on_the_devices(tmp_path: Path) -> None:
    """The reports are those of the process that ended last, prefill."""
    status, _, _ = run(*SMALL, **SIMULATED, KVFERRY_SIM_REPORT=str(tmp_path / "report"))
    assert status == 0
    for report in ("report", "report.cuda"):
        found = json.loads((tmp_path / report).read_text())
        assert found["copied_bytes"]["d2h"] > 0
        assert not any(found["leaked"].values()) and not any(found["misuse"].values()), found


NO_NPU = {"KVFERRY_ASCENDCL": "", "ASCEND_TOOLKIT_HOME": "", "ASCEND_HOME_PATH": ""}


def test_without_an_npu_the_demo_simulates_one_and_says_why() -> None:
    status, out, err = run(*SMALL, **NO_NPU)
    assert (status, err) == (0, "")
    assert re.search("^the NPU is simulated: .*libascendcl.so", out, re.M)


def test_the_demo_says_for_each_kind_of_device_whether_it_is_real_or_simulated() -> None:
    _, out, _ = run(*SMALL, **SIMULATED)
    assert f"the NPU is simulated, by {simulator.library('npu')}\n" in out
    assert f"the GPU is simulated, by {simulator.library('cuda')}\n" in out


def test_without_a_gpu_the_demo_has_none_unless_one_is_asked_for(no_gpu: None) -> None:
    status, out, err = run(*SMALL, **NO_NPU, KVFERRY_CUDA="")
    assert (status, err) == (0, "")
    assert "GPU" not in out and "cuda:" not in out
    status, out, err = run(*SMALL, "--decode=gpu", **NO_NPU, KVFERRY_CUDA="")
    assert (status, err) == (0, "")
    assert re.search("^the GPU is simulated: .*libcuda.so.1", out, re.M)


def test_the_library_that_is_named_is_taken_and_no_other() -> None:
    status, _, err = run(*SMALL, KVFERRY_ASCENDCL="/nonexistent.so")
    assert status == 1
    assert err.startswith("kvferry demo failed: AscendCL cannot be opened: /nonexistent.so: ")
    status, _, err = run(*SMALL, **{**SIMULATED, "KVFERRY_CUDA": "/nonexistent.so"})
    assert status == 1
    assert err.startswith("kvferry demo failed: CUDA's driver cannot be opened: /nonexistent.so: ")


def test_a_toolkits_library_is_found(tmp_path: Path) -> None:
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libascendcl.so").symlink_to(simulator.library())
    status, out, _ = run(*SMALL, "--decode=host", **{**NO_NPU, "ASCEND_TOOLKIT_HOME": str(tmp_path)})
    assert status == 0
    assert f"the NPU is simulated, by {tmp_path}/lib64/libascendcl.so" in out


@pytest.mark.parametrize("option", ["--layers=0", "--blocks=-1", "--block-size=x", "--batch=1.5", "--block-size=K"])
def test_an_option_that_makes_no_sense_is_refused(option: str) -> None:
    status, _, err = run("demo", option)
    assert status == 2
    assert option.split("=", 1)[0] in err


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (("--host", "192.0.2.1"), {}, "--host 192.0.2.1 is no address of this machine"),
        (("--layers", "1000000000"), {}, "of memory on host cannot be had: "),
        ((), {"KVFERRY_LIBRARY": "/nonexistent"}, "KVFERRY_LIBRARY names /nonexistent, which is no file"),
    ],
)
def test_a_failure_is_one_sentence_without_a_traceback(
    arguments: tuple[str, ...], settings: dict[str, str], sentence: str
) -> None:
    status, _, err = run(*SMALL, *arguments, **settings)
    assert status == 1
    (failure,) = (line for line in err.splitlines() if line.startswith("kvferry demo failed: "))
    assert sentence in failure
    assert "Traceback" not in err


def test_a_full_range_of_ports_is_an_error_that_names_it() -> None:
    """Only one port may be used, and decode has it."""
    status, _, err = run(*SMALL, MC_MIN_RPC_PORT="14999", MC_MAX_RPC_PORT="14999")
    assert status == 1
    assert "14999" in err and "Traceback" not in err


def until_printed(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    while text not in (line := process.stdout.readline()):
        assert line, "the demo ended too early"
    return line


LARGE = ("demo", "--layers", "128", "--batch", "1")  # takes a while


def test_ctrl_c_ends_the_demo_at_once_and_its_processes() -> None:
    process = start(*LARGE)
    line = until_printed(process, "decode")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (130, "kvferry demo was interrupted\n")
    assert not Path(f"/proc/{decode_of(line)}").exists()


def decode_of(line: str) -> int:
    found = re.search(r"decode \(process (\d+)\)", line)
    assert found is not None
    return int(found[1])


def test_the_death_of_the_decode_process_is_an_error() -> None:
    process = start(*LARGE)
    os.kill(decode_of(until_printed(process, "decode")), signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert re.search("^kvferry demo failed: ", err, re.M)
    assert "Traceback" not in err


@pytest.mark.parametrize("place", ["host", "npu:0", "cuda:0"])
def test_a_byte_that_differs_is_noticed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SIMULATED.items():
        monkeypatch.setenv(variable, value)
    cache = caches.Cache(caches.Shape(3, 5, 4096), place)
    cache.fill()
    sent = cache.digests()
    for offset in (0, 2 * 2 * 5 * 4096 + 1, 3 * 2 * 5 * 4096 - 1):
        kept = cache.memory.read(1, offset)
        cache.memory.write(bytes([kept[0] ^ 1]), offset)
        with pytest.raises(DemoError, match=f"in layers {offset // (2 * 5 * 4096)}$"):
            caches.compare(sent, cache.digests(), "decode has")
        cache.memory.write(bytes(kept), offset)
    caches.compare(sent, cache.digests(), "decode has")


def test_the_digest_covers_every_block_in_the_order_of_the_sequence() -> None:
    shape = caches.Shape(2, 4, 16)
    offsets = [o for layer in range(2) for o in shape.offsets(layer, [2, 0, 3, 1])]
    assert offsets[:8] == [32, 0, 48, 16, 96, 64, 112, 80]
    assert sorted(offsets) == list(range(0, shape.bytes, 16))


def test_the_error_of_a_failed_transfer_has_its_direction() -> None:
    shape = caches.Shape(1, 4, 4096)
    target = nodes.Node("127.0.0.1", caches.Cache(shape, "host"), "host")
    nowhere = nodes.Decode(target.engine.name(), target.cache.memory.address + shape.bytes, target.cache.table, None)
    prefill = nodes.Prefill("127.0.0.1", caches.Cache(shape, "host"), "host", 2, nowhere)
    with pytest.raises(DemoError, match="writing to decode failed: "):
        prefill.move(OPCODE_WRITE)
