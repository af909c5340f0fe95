// Barriers, and operations of a warp: each lane leaves its operand and waits; the lane that comes
// last computes the result for all of them and lets them go.

#include "operations.hpp"

#include "block.hpp"
#include "errors.hpp"

namespace emulator {

// ---- barriers ----

namespace {

void release(Barrier& barrier) {
    barrier = {};
    for (unsigned i = 0; i < block->threads(); i++) {
        Thread& thread = block->all[i];
        if (thread.waits_for && thread.waits_at == &barrier) block->wake(thread);
    }
}

Barrier& arrive(int id, int threads) {
    if (id < 0 || id >= static_cast<int>(Block::barriers))
        block->fault(error::launch_failed, "barrier %d does not exist; they are 0..15", id);
    if (threads % 32 != 0)
        block->fault(error::launch_failed, "barrier %d for %d threads: not a multiple of 32", id, threads);
    Barrier& barrier = block->barrier[id];
    auto expected = static_cast<unsigned>(threads);
    if (barrier.arrived > 0 && barrier.expected != expected)
        block->fault(error::launch_failed, "barrier %d is used for %u and for %u threads at once", id, barrier.expected,
                     expected);
    barrier.expected = expected;
    barrier.arrived++;
    return barrier;
}

bool complete(const Barrier& barrier) {
    return barrier.arrived == (barrier.expected ? barrier.expected : block->alive());
}

} // namespace

void barrier_sync(int id, int threads) {
    Barrier& barrier = arrive(id, threads);
    if (complete(barrier)) {
        release(barrier);
        block->yield(); // who goes first from here is the order's choice
        return;
    }
    block->wait(id == 0 && threads == 0 ? "__syncthreads" : "named barrier", &barrier);
}

void barrier_arrive(int id, int threads) {
    Barrier& barrier = arrive(id, threads);
    if (complete(barrier)) release(barrier);
}

void thread_left() {
    for (Barrier& barrier : block->barrier)
        if (barrier.arrived > 0 && barrier.expected == 0 && complete(barrier)) release(barrier);
}

// ---- warp operations ----

void warp_operation(const char* name, unsigned mask, void* operand, Compute compute) {
    Thread& self = *current;
    Warp& warp = *self.warp;
    unsigned bit = 1u << self.lane;
    if (!(mask & bit)) block->fault(error::launch_failed, "%s: lane %u is not in its own mask 0x%08x", name, self.lane, mask);
    if (unsigned gone = mask & ~warp.alive)
        block->fault(error::launch_failed, "%s: mask 0x%08x names lanes that have ended (0x%08x)", name, mask, gone);
    self.operation = name;
    self.mask = mask;
    self.operand = operand;
    warp.waiting |= bit;
    if ((warp.waiting & mask) != mask) {
        block->wait(name, nullptr, mask);
        return;
    }
    void* operands[32];
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        Thread& other = warp.threads[lane];
        if (other.operation != name || other.mask != mask)
            block->fault(error::launch_failed, "divergent warp: lane %u is at %s (mask 0x%08x), lane %u at %s (mask 0x%08x)",
                         self.lane, name, mask, lane, other.operation, other.mask);
        operands[lane] = other.operand;
    }
    compute(operands, mask);
    warp.waiting &= ~mask;
    for (unsigned lane = 0; lane < 32; lane++)
        if ((mask & ~bit) >> lane & 1) block->wake(warp.threads[lane]);
}

void sync_warp(unsigned mask) {
    warp_operation("__syncwarp", mask, nullptr, [](void* const*, unsigned) {});
}

namespace {

struct ShuffleOperand {
    std::uint64_t value, result;
    unsigned source;
};
struct VoteOperand {
    bool predicate;
    unsigned result;
};
struct ReduceOperand {
    unsigned value;
    Reduce kind;
    unsigned result;
};
struct MatchOperand {
    std::uint64_t value;
    unsigned result;
};

unsigned combine(Reduce kind, unsigned a, unsigned b) {
    auto sa = static_cast<int>(a), sb = static_cast<int>(b);
    switch (kind) {
    case Reduce::Add:
    case Reduce::AddSigned: return a + b;
    case Reduce::Min: return a < b ? a : b;
    case Reduce::MinSigned: return sa < sb ? a : b;
    case Reduce::Max: return a > b ? a : b;
    case Reduce::MaxSigned: return sa > sb ? a : b;
    case Reduce::And: return a & b;
    case Reduce::Or: return a | b;
    case Reduce::Xor: return a ^ b;
    }
    return 0;
}

} // namespace

std::uint64_t shuffle(unsigned mask, std::uint64_t value, Shuffle kind, unsigned argument, unsigned width) {
    unsigned lane = current->lane, segment = lane & ~(width - 1), source = lane;
    switch (kind) {
    case Shuffle::Index: source = segment + (argument & (width - 1)); break;
    case Shuffle::Up: source = lane - segment >= argument ? lane - argument : lane; break;
    case Shuffle::Down: source = lane - segment + argument < width ? lane + argument : lane; break;
    // Beyond the segment a lane keeps its own value, except that lower segments may be read.
    case Shuffle::Xor: source = (lane ^ argument) < segment + width ? lane ^ argument : lane; break;
    }
    ShuffleOperand operand{value, 0, source};
    warp_operation("__shfl_sync", mask, &operand, [](void* const operands[32], unsigned lanes) {
        for (unsigned i = 0; i < 32; i++) {
            if (!(lanes >> i & 1)) continue;
            auto* own = static_cast<ShuffleOperand*>(operands[i]);
            if (!(lanes >> (own->source & 31) & 1))
                block->fault(error::launch_failed, "__shfl_sync: lane %u reads lane %u, which is not in the mask 0x%08x", i,
                             own->source, lanes);
            own->result = static_cast<ShuffleOperand*>(operands[own->source & 31])->value;
        }
    });
    return operand.result;
}

unsigned ballot(unsigned mask, bool predicate) {
    VoteOperand operand{predicate, 0};
    warp_operation("__ballot_sync", mask, &operand, [](void* const operands[32], unsigned lanes) {
        unsigned votes = 0;
        for (unsigned i = 0; i < 32; i++)
            if ((lanes >> i & 1) && static_cast<VoteOperand*>(operands[i])->predicate) votes |= 1u << i;
        for (unsigned i = 0; i < 32; i++)
            if (lanes >> i & 1) static_cast<VoteOperand*>(operands[i])->result = votes;
    });
    return operand.result;
}

unsigned reduce(unsigned mask, unsigned value, Reduce kind) {
    ReduceOperand operand{value, kind, 0};
    warp_operation("__reduce_sync", mask, &operand, [](void* const operands[32], unsigned lanes) {
        unsigned result = 0;
        bool first = true;
        for (unsigned i = 0; i < 32; i++) {
            if (!(lanes >> i & 1)) continue;
            auto* own = static_cast<ReduceOperand*>(operands[i]);
            result = first ? own->value : combine(own->kind, result, own->value);
            first = false;
        }
        for (unsigned i = 0; i < 32; i++)
            if (lanes >> i & 1) static_cast<ReduceOperand*>(operands[i])->result = result;
    });
    return operand.result;
}

unsigned match_any(unsigned mask, std::uint64_t value) {
    MatchOperand operand{value, 0};
    warp_operation("__match_any_sync", mask, &operand, [](void* const operands[32], unsigned lanes) {
        for (unsigned i = 0; i < 32; i++) {
            if (!(lanes >> i & 1)) continue;
            auto* own = static_cast<MatchOperand*>(operands[i]);
            for (unsigned j = 0; j < 32; j++)
                if ((lanes >> j & 1) && static_cast<MatchOperand*>(operands[j])->value == own->value) own->result |= 1u << j;
        }
    });
    return operand.result;
}

} // namespace emulator
