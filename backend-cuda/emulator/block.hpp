// One thread block: its fibers, warps, barriers and shared memory, and who runs next.
//
// Clusters run one after another; without clusters each block is one. Inside a cluster a thread
// runs until it must wait; then the next ready lane of its warp runs, then the next ready warp of
// any of the cluster's blocks, in the order of the options. Nothing is preempted, so a run is
// repeatable, and a missing barrier shows as a wrong result in at least one order. In the order
// forward the first block runs ahead of the others as far as it can, in the reverse one the last.
//
//   run(kernel) = for every cluster: make the fibers of its blocks, then
//       loop  pick a ready thread, switch to it
//             none ready: do the next late copy (async.cpp), else report a deadlock
//
// Anything that a kernel may not do ends the launch through fault(): no later thread runs.
#pragma once

#include "fiber.hpp"
#include "options.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace emulator {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

// Why a launch ended early: a driver error code and a text with kernel, block and thread.
struct Fault {
    int code = 0;
    std::string text;
};

// A kernel and its arguments, ready to run.
struct Launch {
    const char* name;
    std::function<void()> body;
    Index grid, block;
    unsigned dynamic_shared_bytes;
    unsigned cluster = 1; // blocks of a cluster, along x
};

// A group of cp.async, or the open one.
struct AsyncCopy {
    void* to;
    const void* from; // null: zeros
    unsigned bytes;
};

class Block;
struct Warp;
struct Thread {
    Fiber fiber;
    Index index;
    unsigned lane = 0;
    Warp* warp = nullptr;
    unsigned cluster_phase = 0; // of barrier.cluster, in which it arrived
    bool cluster_arrived = false;
    // What it waits for, null while it can run.
    const char* waits_for = nullptr;
    const void* waits_at = nullptr;
    unsigned wait_detail = 0;
    // Its part in a warp operation under way.
    const char* operation = nullptr;
    unsigned mask = 0;
    void* operand = nullptr;
    // cp.async groups: the last is still open.
    std::vector<std::vector<AsyncCopy>> copies;
    // wgmma: how many this lane has issued, and whether a fence came since the last wait.
    unsigned wgmma_issued = 0;
    bool wgmma_fenced = false;
};

// A wgmma that was issued and not yet waited for: one warp's 16 rows of it.
struct Wgmma {
    unsigned n;
    bool a_unsigned, a_in_registers, add;
    unsigned long long a_descriptor, b_descriptor;
    unsigned a[32][4];
    int* d[32];
    unsigned lanes; // how many lanes have issued it
    bool done;
};

struct Warp {
    Block* owner = nullptr;
    Thread* threads = nullptr; // 32 of them
    unsigned rank = 0;         // in the block
    std::uint32_t alive = 0, ready = 0, waiting = 0;
    std::vector<Wgmma> wgmmas;        // wgmmas[i] is number wgmma_first + i
    unsigned wgmma_first = 0;
    std::vector<unsigned> wgmma_groups; // number past the end of each committed group
};

// bar.sync 0..15.
struct Barrier {
    unsigned arrived = 0, expected = 0;
};

struct BulkCopy {
    Block* into;
    void* to;
    const void* from;
    unsigned bytes;
    std::uint64_t* mbarrier; // of that block
};

// A static array in shared memory, known by the place in the source that declares it.
struct SharedSite {
    const void* site;
    unsigned offset, bytes;
};

class Block {
public:
    static constexpr unsigned max_threads = 1024;
    static constexpr unsigned barriers = 16;
    static constexpr unsigned char poison = 0xCB; // what shared memory holds before it is written

    Block();
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    // Runs every block of the launch, this one leading each cluster. An empty text means that all
    // went well.
    Fault run(const Launch& launch);

    // --- for the operations, called from a fiber ---

    // Stops this thread until wake(); the text says for what.
    void wait(const char* what, const void* at = nullptr, unsigned detail = 0);
    void wake(Thread& thread);
    // Lets whoever is first in the order go on.
    void yield();
    [[noreturn]] void fault(int code, const char* format, ...) __attribute__((format(printf, 3, 4)));

    void* static_shared(const void* site, unsigned bytes, unsigned align);
    // Faults unless [pointer, pointer + bytes) is shared memory of this block, aligned as said.
    void check_shared(const char* operation, const void* pointer, unsigned bytes, unsigned align);
    bool is_shared(const void* pointer) const;

    // --- clusters (cluster.cpp) ---

    unsigned rank() const { return rank_; }
    // The block of this rank in the cluster; faults if there is none, or if it has ended.
    Block& peer(const char* operation, unsigned rank);
    // The same place in the shared memory of a block of the cluster.
    void* in_block(const Block& other, const void* pointer) const;
    void cluster_arrive();
    void cluster_wait();

    unsigned threads() const { return thread_count_; }
    unsigned alive() const { return alive_; }

    Index index;
    Launch const* launch = nullptr;
    unsigned char* shared = nullptr; // starts with the dynamic part
    std::vector<Warp> warps;
    std::vector<Thread> all;
    Barrier barrier[barriers];
    Block* first = nullptr;            // that leads the cluster; what follows is its own
    std::vector<BulkCopy> bulk_copies; // under way, of the whole cluster
    Random random{0};
    const void* cluster_barrier() const { return &first->cluster_arrived_; }
    std::vector<int> scratch; // for a wgmma: B and D as integers

private:
    static void enter();
    void start_block();
    void finish_thread();
    void run_cluster();
    void complete_cluster_barrier();
    unsigned cluster_alive() const;
    Thread* pick(Thread* after);
    unsigned pick_bit(std::uint32_t bits);
    void schedule(Thread* after);
    void report_deadlock();
    std::string waiting() const;
    std::string where() const;
    void reserve_stacks(unsigned count);
    void check_red_zones();

    unsigned thread_count_ = 0, alive_ = 0, rank_ = 0;
    std::uint32_t ready_warps_ = 0;
    // Of the leader: the cluster's blocks, itself first, and those made for it; barrier.cluster.
    std::vector<Block*> cluster_;
    std::vector<std::unique_ptr<Block>> others_;
    unsigned cluster_arrived_ = 0, cluster_phase_ = 0;
    Fiber main_;
    Fault fault_;
    unsigned char* stacks_ = nullptr;
    unsigned stacks_ready_ = 0;
    unsigned char* arena_ = nullptr;
    std::vector<SharedSite> sites_;
    unsigned static_end_ = 0;
};

// The thread that runs now on this OS thread, and its block; null outside of a launch. They are
// read at every step, so they take the fast kind of thread-local storage, of which a library that
// is loaded at run time gets little: nothing larger may be thread_local here.
extern thread_local Thread* current __attribute__((tls_model("initial-exec")));
extern thread_local Block* block __attribute__((tls_model("initial-exec")));

// The block machinery of this OS thread.
Block& machinery();

} // namespace emulator
