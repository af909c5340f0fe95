#include "block.hpp"

#include "errors.hpp"
#include "operations.hpp"

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <sys/mman.h>
#include <unistd.h>

namespace emulator {
namespace {

constexpr unsigned page = 4096;
constexpr unsigned stack_bytes = 128 * 1024; // its lowest page is a guard
constexpr unsigned arena_bytes = 320 * 1024;
constexpr unsigned char red_zone = 0x5E;
constexpr unsigned red_zone_bytes = 256;

unsigned char* map(std::size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        std::perror("emulator: mmap");
        std::abort();
    }
    return static_cast<unsigned char*>(memory);
}

struct sigaction old_segv, old_bus;

// A wild access of a kernel ends its launch; anything else goes to whoever was there before.
void on_signal(int number, siginfo_t* info, void* context) {
    if (current) {
        block->fault(error::illegal_address, "illegal access to address %p", info->si_addr);
    }
    struct sigaction& old = number == SIGSEGV ? old_segv : old_bus;
    if (old.sa_flags & SA_SIGINFO) {
        old.sa_sigaction(number, info, context);
    } else if (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN) {
        std::signal(number, SIG_DFL);
        std::raise(number);
    } else {
        old.sa_handler(number);
    }
}

void install_handlers() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        // Not blocked while handled: fault() leaves the handler by switching stacks.
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &old_segv);
        sigaction(SIGBUS, &action, &old_bus);
    });
}

// The i-th of n in the order asked for; a bijection for every i < n.
std::uint64_t permuted(std::uint64_t i, std::uint64_t n, const Options& options) {
    switch (options.order) {
    case Order::Forward: return i;
    case Order::Reverse: return n - 1 - i;
    case Order::Shuffle: break;
    }
    Random random{options.seed};
    std::uint64_t step = n < 3 ? 1 : 1 + random.next() % (n - 1);
    while (std::gcd(step, n) != 1) step++;
    unsigned __int128 product = static_cast<unsigned __int128>(i) * step;
    return static_cast<std::uint64_t>((product + random.next() % n) % n);
}

} // namespace

thread_local Thread* current = nullptr;
thread_local Block* block = nullptr;

Block& machinery() {
    thread_local std::unique_ptr<Block> instance;
    if (!instance) instance = std::make_unique<Block>();
    return *instance;
}

Block::Block() : all(max_threads), first(this), scratch(32 * 256 + 16 * 256) {
    install_handlers();
    stacks_ = map(std::size_t{max_threads} * stack_bytes);
    // Aligned to 1024 inside, with a page out of bounds on both sides.
    arena_ = map(arena_bytes + 2 * page);
    mprotect(arena_, page, PROT_NONE);
    mprotect(arena_ + page + arena_bytes, page, PROT_NONE);
    shared = arena_ + page;
}

Block::~Block() {
    munmap(stacks_, std::size_t{max_threads} * stack_bytes);
    munmap(arena_, arena_bytes + 2 * page);
}

void Block::reserve_stacks(unsigned count) {
    for (; stacks_ready_ < count; stacks_ready_++)
        mprotect(stacks_ + std::size_t{stacks_ready_} * stack_bytes, page, PROT_NONE);
}

// ---- one launch ----

Fault Block::run(const Launch& what) {
    launch = &what;
    fault_ = {};
    const Options& chosen = options();
    random.state = chosen.seed;
    sites_.clear();
    static_end_ = (what.dynamic_shared_bytes + red_zone_bytes + 1023) / 1024 * 1024;
    while (others_.size() + 1 < what.cluster) others_.push_back(std::make_unique<Block>());
    cluster_ = {this};
    for (unsigned rank = 1; rank < what.cluster; rank++) cluster_.push_back(others_[rank - 1].get());

    unsigned across = what.grid.x / what.cluster;
    std::uint64_t clusters = std::uint64_t{across} * what.grid.y * what.grid.z;
    for (std::uint64_t i = 0; i < clusters && fault_.text.empty(); i++) {
        std::uint64_t linear = permuted(i, clusters, chosen);
        cluster_arrived_ = cluster_phase_ = 0;
        bulk_copies.clear();
        for (unsigned rank = 0; rank < what.cluster; rank++) {
            Block& each = *cluster_[rank];
            each.launch = &what;
            each.first = this;
            each.rank_ = rank;
            each.index = {static_cast<unsigned>(linear % across) * what.cluster + rank,
                          static_cast<unsigned>(linear / across % what.grid.y),
                          static_cast<unsigned>(linear / across / what.grid.y)};
            each.start_block();
        }
        run_cluster();
    }
    block = nullptr;
    current = nullptr;
    launch = nullptr;
    return fault_;
}

void Block::start_block() {
    thread_count_ = launch->block.x * launch->block.y * launch->block.z;
    reserve_stacks(thread_count_);
    warps.resize((thread_count_ + 31) / 32);
    unsigned dynamic = launch->dynamic_shared_bytes;
    std::memset(shared, poison, dynamic);
    std::memset(shared + dynamic, red_zone, red_zone_bytes);
    for (const SharedSite& site : first->sites_) {
        std::memset(shared + site.offset, poison, site.bytes);
        std::memset(shared + site.offset + site.bytes, red_zone, red_zone_bytes);
    }
    for (Barrier& b : barrier) b = {};

    Index at;
    alive_ = thread_count_;
    ready_warps_ = 0;
    for (unsigned i = 0; i < thread_count_; i++) {
        Thread& thread = all[i];
        Warp& warp = warps[i / 32];
        if (i % 32 == 0) {
            unsigned lanes = thread_count_ - i < 32 ? thread_count_ - i : 32;
            warp.owner = this;
            warp.threads = &thread;
            warp.rank = i / 32;
            warp.alive = warp.ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
            warp.waiting = 0;
            warp.wgmmas.clear();
            warp.wgmma_first = 0;
            warp.wgmma_groups.clear();
            ready_warps_ |= 1u << warp.rank;
        }
        thread.index = at;
        thread.lane = i % 32;
        thread.warp = &warp;
        thread.waits_for = nullptr;
        thread.operation = nullptr;
        thread.cluster_arrived = false;
        thread.copies.clear();
        thread.wgmma_issued = 0;
        thread.wgmma_fenced = false;
        prepare(thread.fiber, stacks_ + std::size_t{i} * stack_bytes, stack_bytes, &Block::enter);
        if (++at.x == launch->block.x) {
            at.x = 0;
            if (++at.y == launch->block.y) at.y = 0, at.z++;
        }
    }
}

void Block::run_cluster() {
    Thread* begins = pick(nullptr);
    current = begins;
    block = begins->warp->owner;
    switch_fiber(main_, begins->fiber);
    // Back here when the last thread is done, or after a fault.
    current = nullptr;
    for (Block* each : cluster_)
        if (fault_.text.empty()) each->check_red_zones();
}

void Block::enter() {
    block->launch->body();
    block->finish_thread();
}

void Block::finish_thread() {
    Thread& thread = *current;
    Warp& warp = *thread.warp;
    if (!warp.wgmmas.empty() && thread.wgmma_issued > warp.wgmma_first)
        fault(error::launch_failed, "the thread ends with a wgmma that it did not wait for");
    warp.alive &= ~(1u << thread.lane);
    warp.ready &= ~(1u << thread.lane);
    if (warp.ready == 0) ready_warps_ &= ~(1u << warp.rank);
    alive_--;
    if (alive_ == 0) {
        std::size_t pending = 0;
        for (const BulkCopy& copy : first->bulk_copies) pending += copy.into == this;
        if (pending > 0)
            fault(error::launch_failed, "the block ends with %zu bulk copies that nobody waited for", pending);
    }
    if (cluster_alive() == 0) {
        switch_fiber(thread.fiber, first->main_);
        __builtin_unreachable();
    }
    if (alive_ > 0) thread_left();
    complete_cluster_barrier();
    schedule(&thread);
    __builtin_unreachable();
}

// ---- who runs next ----

unsigned Block::pick_bit(std::uint32_t bits) {
    switch (options().order) {
    case Order::Forward: break;
    case Order::Reverse: return 31 - static_cast<unsigned>(__builtin_clz(bits));
    case Order::Shuffle: {
        for (unsigned skip = first->random.below(static_cast<unsigned>(__builtin_popcount(bits))); skip > 0; skip--)
            bits &= bits - 1;
        break;
    }
    }
    return static_cast<unsigned>(__builtin_ctz(bits));
}

Thread* Block::pick(Thread* after) {
    Warp* warp = after && after->warp->ready ? after->warp : nullptr;
    while (!warp) {
        // The blocks that can go on, as bits.
        std::uint32_t ready = 0;
        const std::vector<Block*>& cluster = first->cluster_;
        for (std::size_t rank = 0; rank < cluster.size(); rank++) ready |= (cluster[rank]->ready_warps_ ? 1u : 0u) << rank;
        if (ready) {
            Block& chosen = *cluster[cluster.size() == 1 ? 0 : pick_bit(ready)];
            warp = &chosen.warps[pick_bit(chosen.ready_warps_)];
        } else if (!late_bulk_copy(*first)) {
            return nullptr;
        }
    }
    return &warp->threads[pick_bit(warp->ready)];
}

// Switches to the next thread, one of the same warp as `after` first.
void Block::schedule(Thread* after) {
    Thread* self = current;
    Thread* next = pick(after);
    if (!next) report_deadlock();
    if (next == self) return;
    current = next;
    block = next->warp->owner;
    switch_fiber(self->fiber, next->fiber);
}

void Block::wait(const char* what, const void* at, unsigned detail) {
    Thread& thread = *current;
    thread.waits_for = what;
    thread.waits_at = at;
    thread.wait_detail = detail;
    Warp& warp = *thread.warp;
    warp.ready &= ~(1u << thread.lane);
    if (warp.ready == 0) ready_warps_ &= ~(1u << warp.rank);
    schedule(&thread);
}

void Block::yield() { schedule(nullptr); }

void Block::wake(Thread& thread) {
    thread.waits_for = nullptr;
    thread.warp->ready |= 1u << thread.lane;
    thread.warp->owner->ready_warps_ |= 1u << thread.warp->rank;
}

// ---- faults ----

std::string Block::where() const {
    char text[256];
    int n = std::snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u)", launch->name, index.x, index.y, index.z);
    if (current)
        std::snprintf(text + n, sizeof text - static_cast<std::size_t>(n), ", thread (%u, %u, %u)", current->index.x,
                      current->index.y, current->index.z);
    return text;
}

void Block::fault(int code, const char* format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    first->fault_ = {code, where() + ": " + text};
    Thread* self = current;
    current = nullptr;
    switch_fiber(self->fiber, first->main_);
    __builtin_unreachable();
}

// What the warps of this block wait for, a line each.
std::string Block::waiting() const {
    std::string text;
    for (const Warp& warp : warps) {
        std::uint32_t left = warp.alive;
        while (left) {
            const Thread& one = warp.threads[__builtin_ctz(left)];
            std::uint32_t same = 0;
            for (unsigned lane = 0; lane < 32; lane++) {
                const Thread& other = warp.threads[lane];
                if ((left >> lane & 1) && other.waits_for == one.waits_for && other.waits_at == one.waits_at)
                    same |= 1u << lane;
            }
            char line[256];
            int n = std::snprintf(line, sizeof line, "\n  ");
            auto add = [&](auto... values) {
                n += std::snprintf(line + n, sizeof line - static_cast<std::size_t>(n), values...);
            };
            if (first->cluster_.size() > 1) add("block %u of the cluster, ", rank_);
            add("warp %u lanes 0x%08x: %s", warp.rank, same, one.waits_for);
            if (one.waits_at >= barrier && one.waits_at < barrier + barriers) {
                auto* b = static_cast<const Barrier*>(one.waits_at);
                add(" (barrier %ld: %u of %u threads arrived)", static_cast<long>(b - barrier), b->arrived,
                    b->expected ? b->expected : alive_);
            } else if (one.waits_at == cluster_barrier()) {
                add(" (%u of %u threads arrived)", first->cluster_arrived_, cluster_alive());
            } else if (one.waits_at) {
                add(" (shared memory + %ld, phase parity %u)",
                    static_cast<long>(static_cast<const unsigned char*>(one.waits_at) - shared), one.wait_detail);
            } else {
                add(" (mask 0x%08x)", one.wait_detail);
            }
            text += line;
            left &= ~same;
        }
    }
    return text;
}

void Block::report_deadlock() {
    std::string text = "deadlock, every thread waits:";
    for (const Block* each : first->cluster_) text += each->waiting();
    Thread* self = current;
    current = nullptr; // the deadlock is the block's, not this thread's
    first->fault_ = {error::launch_timeout, where() + ": " + text};
    switch_fiber(self->fiber, first->main_);
}

// ---- shared memory ----

bool Block::is_shared(const void* pointer) const {
    auto* p = static_cast<const unsigned char*>(pointer);
    return p >= shared && p < shared + arena_bytes;
}

void* Block::static_shared(const void* site, unsigned bytes, unsigned align) {
    for (const SharedSite& known : first->sites_)
        if (known.site == site) return shared + known.offset;
    unsigned offset = (first->static_end_ + align - 1) / align * align;
    first->static_end_ = offset + bytes + red_zone_bytes;
    unsigned total = launch->dynamic_shared_bytes;
    for (const SharedSite& known : first->sites_) total += known.bytes;
    if (first->static_end_ > arena_bytes || total - launch->dynamic_shared_bytes + bytes > 48 * 1024 ||
        total + bytes > max_shared_bytes(options().sm))
        fault(error::out_of_resources, "%u bytes of shared memory are more than a block may have", total + bytes);
    first->sites_.push_back({site, offset, bytes});
    for (Block* each : first->cluster_) {
        std::memset(each->shared + offset, poison, bytes);
        std::memset(each->shared + offset + bytes, red_zone, red_zone_bytes);
    }
    return shared + offset;
}

void Block::check_shared(const char* operation, const void* pointer, unsigned bytes, unsigned align) {
    auto* p = static_cast<const unsigned char*>(pointer);
    if (reinterpret_cast<std::uintptr_t>(p) % align != 0)
        fault(error::misaligned_address, "%s: address %p is not a multiple of %u", operation, pointer, align);
    if (p >= shared && p + bytes <= shared + launch->dynamic_shared_bytes) return;
    for (const SharedSite& site : first->sites_) {
        unsigned char* start = shared + site.offset;
        if (p >= start && p + bytes <= start + site.bytes) return;
    }
    if (!is_shared(pointer))
        fault(error::illegal_address, "%s: address %p is not in shared memory", operation, pointer);
    fault(error::illegal_address, "%s: %u bytes at shared memory + %ld lie outside of what the block has", operation,
          bytes, static_cast<long>(p - shared));
}

void Block::check_red_zones() {
    auto check = [&](const char* what, unsigned end) {
        for (unsigned i = 0; i < red_zone_bytes; i++) {
            if (shared[end + i] == red_zone) continue;
            first->fault_ = {error::illegal_address, where() + ": a write " + std::to_string(i) + " bytes past the end of " + what};
            return;
        }
    };
    check("dynamic shared memory", launch->dynamic_shared_bytes);
    for (const SharedSite& site : first->sites_) check("a static shared array", site.offset + site.bytes);
}

} // namespace emulator
