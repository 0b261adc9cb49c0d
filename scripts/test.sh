#!/usr/bin/env bash
# Run every test: scripts/test.sh PYTHON, an interpreter with kvferry and scripts/test-requirements.txt installed.
#
#  1. Go's tests, with the race detector; those of the data path once more as with many processors, where it waits and
#     spreads in other ways: -short leaves out what uses one goroutine
#  2. each of Go's fuzzers, on a few thousand inputs
#  3. everything under tests/; those of the data path run by TCP and between engines on one host
#
# Several processes share the work of 3, twice as many as there are processors, since tests wait more than they compute.
# One that has no tests left takes some of another's.
#
# All three run whatever the others come to. What the machine lacks is skipped and named at the end; with CI=true or
# KVFERRY_REQUIRE_ALL=1 it is a failure instead.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
fuzz_inputs=${KVFERRY_FUZZ_INPUTS:-5000}
processors=$(nproc)
processes=$((processors < 4 ? 2 * processors : 8))
failed=()
skipped=()

# run NAME COMMAND...: run a step and note it when it fails.
run() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed+=("$name")
}

# skip NAME HOW: note a step that this machine cannot run, and how to get it.
skip() {
    if [[ ${CI:-} == true || ${KVFERRY_REQUIRE_ALL:-} == 1 ]]; then
        failed+=("$1 ($2)")
    else
        skipped+=("$1: $2")
    fi
}

# fuzz: run every fuzzer of the module on its own, as Go wants it; a package's are built once. The budget is a number of
# inputs, since one in time fails now and then by itself: before Go 1.27 a fuzzer may report the end of its time as its
# failure (go.dev/issue/75804).
fuzz() {
    local package program fuzzer corpora result=0
    local files='{{$dir := .Dir}}{{range .TestGoFiles}}{{$dir}}/{{.}} {{end}}{{range .XTestGoFiles}}{{$dir}}/{{.}} {{end}}'
    program=$(mktemp)
    for package in $(go list -f "$files" ./... | xargs grep -l '^func Fuzz' | xargs dirname | sort -u); do
        corpora=$(go env GOCACHE)/fuzz/$(go list "$package")
        go test -c -vet=off -fuzz . -o "$program" "$package" || result=1
        for fuzzer in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$package"/*_test.go); do
            printf '%s %s\n' "$package" "$fuzzer"
            (cd "$package" && "$program" -test.run '^$' -test.fuzz "^$fuzzer\$" -test.fuzztime "${fuzz_inputs}x" \
                -test.fuzzminimizetime 10x -test.fuzzcachedir "$corpora") || result=1
        done
    done
    rm -f "$program"
    return $result
}

if go list -m >/dev/null && command -v cc >/dev/null; then
    run "Go tests" go test -race ./...
    run "Go tests as with 16 processors" env GOMAXPROCS=16 go test -race -short -count=1 ./core ./core/staging ./tcp/...
    run "Go fuzzers" fuzz
else
    skip "Go tests and fuzzers" "install Go $(sed -n 's/^go //p' go.mod) or newer and a C compiler"
fi
command -v etcd >/dev/null || skip "Go tests of the etcd metadata store" "apt-get install etcd-server"
command -v redis-server >/dev/null || skip "Go tests of the Redis metadata store" "apt-get install redis-server"
run "Tests across languages and processes" "$python" -m pytest -n "$processes" --dist worksteal tests

for step in "${skipped[@]}"; do printf 'Skipped: %s\n' "$step"; done
for step in "${failed[@]}"; do printf 'FAILED: %s\n' "$step" >&2; done
((${#failed[@]} == 0))
