// A target and an initiator in one program: the initiator writes many scattered blocks in one batch, the target learns
// of it by a notification and checks every byte.
//
//   c++ -std=c++11 blocks.cpp $(pkg-config --cflags --libs transfer_engine) -o blocks && ./blocks
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <transfer_engine_c.h>
#include <transfer_engine_ext.h>

namespace {

void check(bool ok, const std::string &what)
{
    if (!ok) {
        throw std::runtime_error(what + ": " + kvferry_last_error());
    }
}

struct Destroy {
    void operator()(void *engine) const { destroyTransferEngine(engine); }
};
using Engine = std::unique_ptr<void, Destroy>;

Engine makeEngine()
{
    Engine engine(createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1));
    check(engine != nullptr, "making an engine");
    return engine;
}

std::string nameOf(const Engine &engine)
{
    char name[256];
    check(getLocalIpAndPort(engine.get(), name, sizeof name) == 0, "asking for the name");
    return name;
}

const std::size_t kBlocks = 512, kBlockSize = 16 << 10;

std::uint8_t patternAt(std::size_t block, std::size_t i)
{
    return static_cast<std::uint8_t>(block * 31 + i * 7 + i / 256);
}

// Writes block i of the source to place kBlocks-1-i of the cache, all in one call, with a notification at the end.
void writeReversed(const Engine &engine, const std::string &target, std::vector<std::uint8_t> &source,
                   const std::vector<std::uint8_t> &cache)
{
    const segment_id_t segment = openSegment(engine.get(), target.c_str());
    check(segment >= 0, "opening " + target);
    std::vector<std::uint64_t> local, remote, lengths(kBlocks, kBlockSize);
    for (std::size_t i = 0; i < kBlocks; i++) {
        local.push_back(reinterpret_cast<std::uintptr_t>(&source[i * kBlockSize]));
        remote.push_back(reinterpret_cast<std::uintptr_t>(&cache[(kBlocks - 1 - i) * kBlockSize]));
    }
    char name[] = "layer 0", text[] = "written";
    const notify_msg_t message = {name, text};
    batch_id_t batch;
    const int result = kvferry_transfer_sync(engine.get(), OPCODE_WRITE, segment, local.data(), remote.data(),
                                             lengths.data(), kBlocks, &message, 10000, &batch);
    const std::string reason = kvferry_last_error();
    if (batch != INVALID_BATCH) {
        kvferry_batch_discard(engine.get(), batch); // given up: the memory must not be touched any more
    }
    if (result != 0) {
        throw std::runtime_error("writing to " + target + ": " + reason);
    }
}

void expectNotification(const Engine &engine)
{
    int count = 0;
    notify_msg_t *messages = getNotifsFromEngine(engine.get(), &count);
    const bool right = count == 1 && std::string(messages[0].name) == "layer 0";
    freeNotifsMsgBuf(messages, count);
    check(right, "waiting for the notification");
}

void run()
{
    std::vector<std::uint8_t> source(kBlocks * kBlockSize), cache(source.size());
    const Engine target = makeEngine(), initiator = makeEngine();
    check(registerLocalMemory(target.get(), cache.data(), cache.size(), "cpu:0", 1) == 0, "registering memory");
    for (std::size_t i = 0; i < source.size(); i++) {
        source[i] = patternAt(i / kBlockSize, i % kBlockSize);
    }
    writeReversed(initiator, nameOf(target), source, cache);
    expectNotification(target);
    for (std::size_t i = 0; i < cache.size(); i++) {
        if (cache[i] != patternAt(kBlocks - 1 - i / kBlockSize, i % kBlockSize)) {
            throw std::runtime_error("a byte differs");
        }
    }
    std::cout << kBlocks << " blocks written, every byte checked\n";
}

} // namespace

int main()
{
    try {
        run();
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
