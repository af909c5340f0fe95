// Copies that run beside the threads, and the mbarriers that count them.
//
// Late (the default): a cp.async moves its bytes when its thread waits for it, a bulk copy when no
// thread of the block can go on. Early: both when they are issued. Between the two, a missing wait
// and a buffer that is overwritten too soon each show in one of the modes.
//
// An mbarrier is one 64-bit word: bit 63 the parity of the current phase; 20 bits each for the
// arrivals of a phase and those still missing; 22 bits, signed, for bytes expected and not yet in.

#include "operations.hpp"

#include "block.hpp"
#include "errors.hpp"

#include <cstring>

namespace emulator {

// ---- cp.async ----

namespace {

void copy(const AsyncCopy& c) {
    if (c.from)
        std::memcpy(c.to, c.from, c.bytes);
    else
        std::memset(c.to, 0, c.bytes);
}

} // namespace

void cp_async(void* smem, const void* global, unsigned bytes, bool valid) {
    block->check_shared("cp.async", smem, bytes, bytes);
    if (reinterpret_cast<std::uintptr_t>(global) % bytes != 0)
        block->fault(error::misaligned_address, "cp.async: global address %p is not a multiple of %u", global, bytes);
    AsyncCopy c{smem, valid ? global : nullptr, bytes};
    if (!options().late) {
        copy(c);
        return;
    }
    auto& groups = current->copies;
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back(c);
}

void cp_async_commit() {
    auto& groups = current->copies;
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}

void cp_async_wait(int left) {
    auto& groups = current->copies;
    // The last group is open and is not waited for.
    auto keep = static_cast<std::size_t>(left) + 1;
    if (groups.size() <= keep) return;
    auto end = groups.end() - static_cast<std::ptrdiff_t>(keep);
    for (auto group = groups.begin(); group != end; ++group)
        for (const AsyncCopy& c : *group) copy(c);
    groups.erase(groups.begin(), end);
}

// ---- mbarriers ----

namespace {

struct Mbarrier {
    unsigned parity, count, missing;
    int bytes;
};

Mbarrier unpack(std::uint64_t word) {
    auto low = static_cast<std::int64_t>(word << 42) >> 42;
    return {static_cast<unsigned>(word >> 63), static_cast<unsigned>(word >> 22 & 0xFFFFF),
            static_cast<unsigned>(word >> 42 & 0xFFFFF), static_cast<int>(low)};
}

std::uint64_t pack(const Mbarrier& m) {
    return std::uint64_t{m.parity} << 63 | std::uint64_t{m.missing} << 42 | std::uint64_t{m.count} << 22 |
           (static_cast<std::uint64_t>(m.bytes) & 0x3FFFFF);
}

std::uint64_t* checked(const char* operation, void* mbarrier) {
    block->check_shared(operation, mbarrier, 8, 8);
    return static_cast<std::uint64_t*>(mbarrier);
}

// Not zeros, nor what shared memory holds before it is written.
bool initialized(std::uint64_t word) { return unpack(word).count != 0 && word != std::uint64_t{0x0101010101010101} * Block::poison; }

// Applies arrivals and bytes to an mbarrier of block `at`; when the phase is complete, starts the
// next and wakes those who wait.
void advance(const char* operation, Block& at, std::uint64_t* word, unsigned arrivals, int bytes) {
    Mbarrier m = unpack(*word);
    if (!initialized(*word)) block->fault(error::launch_failed, "%s: the mbarrier is not initialized", operation);
    if (arrivals > m.missing)
        block->fault(error::launch_failed, "%s: more arrivals than the mbarrier's %u", operation, m.count);
    m.missing -= arrivals;
    m.bytes += bytes;
    if (m.missing == 0 && m.bytes == 0) {
        m.parity ^= 1;
        m.missing = m.count;
        for (unsigned i = 0; i < at.threads(); i++) {
            Thread& thread = at.all[i];
            if (thread.waits_for && thread.waits_at == word) at.wake(thread);
        }
    }
    *word = pack(m);
}

void copy(const BulkCopy& c) {
    std::memcpy(c.to, c.from, c.bytes);
    advance("cp.async.bulk", *c.into, c.mbarrier, 0, -static_cast<int>(c.bytes));
}

} // namespace

void mbarrier_init(void* mbarrier, unsigned count) {
    if (count == 0 || count > 0xFFFFF)
        block->fault(error::launch_failed, "mbarrier_init: a count of %u; expected 1 to 1048575", count);
    *checked("mbarrier_init", mbarrier) = pack({0, count, count, 0});
}

void mbarrier_arrive(void* mbarrier, unsigned expected_bytes, unsigned count) {
    if (expected_bytes > 0xFFFFF)
        block->fault(error::launch_failed, "mbarrier_arrive_expect_tx: %u bytes; at most 1048575", expected_bytes);
    advance("mbarrier_arrive", *block, checked("mbarrier_arrive", mbarrier), count, static_cast<int>(expected_bytes));
}

void mbarrier_arrive_in(void* mbarrier, unsigned rank) {
    std::uint64_t* own = checked("mbarrier_arrive_in", mbarrier);
    Block& other = block->peer("mbarrier_arrive_in", rank);
    advance("mbarrier_arrive_in", other, static_cast<std::uint64_t*>(block->in_block(other, own)), 1, 0);
}

// The hardware waits for a while before it says no; here it waits until it can say yes.
bool mbarrier_try_wait(void* mbarrier, unsigned parity) {
    std::uint64_t* word = checked("mbarrier_try_wait", mbarrier);
    if (!initialized(*word)) block->fault(error::launch_failed, "mbarrier_try_wait: the mbarrier is not initialized");
    while (unpack(*word).parity == (parity & 1)) block->wait("mbarrier", word, parity & 1);
    return true;
}

// ---- bulk copies ----

namespace {

void checked_copy(void* smem, const void* global, unsigned bytes) {
    if (bytes == 0 || bytes % 16 != 0)
        block->fault(error::misaligned_address, "cp.async.bulk: %u bytes, not a positive multiple of 16", bytes);
    block->check_shared("cp.async.bulk", smem, bytes, 16);
    if (reinterpret_cast<std::uintptr_t>(global) % 16 != 0)
        block->fault(error::misaligned_address, "cp.async.bulk: global address %p is not a multiple of 16", global);
}

void start(const BulkCopy& c) {
    if (options().late)
        block->first->bulk_copies.push_back(c);
    else
        copy(c);
}

} // namespace

void bulk_copy_g2s(void* smem, const void* global, unsigned bytes, void* mbarrier) {
    checked_copy(smem, global, bytes);
    start({block, smem, global, bytes, checked("cp.async.bulk", mbarrier)});
}

void bulk_copy_multicast(void* smem, const void* global, unsigned bytes, void* mbarrier, unsigned ranks) {
    checked_copy(smem, global, bytes);
    std::uint64_t* own = checked("cp.async.bulk.multicast", mbarrier);
    for (unsigned rank = 0; ranks >> rank != 0; rank++) {
        if (!(ranks >> rank & 1)) continue;
        Block& other = block->peer("cp.async.bulk.multicast", rank);
        start({&other, block->in_block(other, smem), global, bytes, static_cast<std::uint64_t*>(block->in_block(other, own))});
    }
}

bool late_bulk_copy(Block& first) {
    auto& pending = first.bulk_copies;
    if (pending.empty()) return false;
    std::size_t at = 0;
    switch (options().order) {
    case Order::Forward: break;
    case Order::Reverse: at = pending.size() - 1; break;
    case Order::Shuffle: at = first.random.below(static_cast<unsigned>(pending.size())); break;
    }
    BulkCopy c = pending[at];
    pending.erase(pending.begin() + static_cast<std::ptrdiff_t>(at));
    copy(c);
    return true;
}

} // namespace emulator
