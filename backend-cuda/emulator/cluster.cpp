// Clusters: blocks that run at the same time and reach into each other's shared memory.
//
// Each block has a Block of its own; the first of them leads: it has the scheduler's stack, the
// fault and the barrier of all. What PTX ISA says of them, and what is caught here:
//
//   mapa                    the same place in another block: Block::in_block
//   barrier.cluster         all threads of all blocks that have not ended arrive; a thread may not
//                           arrive twice without having waited. One that nobody comes to is a
//                           deadlock, reported with how many arrived
//   an operation on the     faults if the block has ended, as its memory is gone. A block that ends
//   memory of another       while a copy into it is under way faults as well (Block::finish_thread)
#include "block.hpp"
#include "errors.hpp"
#include "operations.hpp"

namespace emulator {

Block& Block::peer(const char* operation, unsigned rank) {
    if (rank >= first->cluster_.size())
        fault(error::launch_failed, "%s: block %u of a cluster of %zu", operation, rank, first->cluster_.size());
    Block& other = *first->cluster_[rank];
    if (other.alive_ == 0) fault(error::illegal_address, "%s: block %u of the cluster has ended", operation, rank);
    return other;
}

void* Block::in_block(const Block& other, const void* pointer) const {
    return other.shared + (static_cast<const unsigned char*>(pointer) - shared);
}

unsigned Block::cluster_alive() const {
    unsigned threads = 0;
    for (const Block* each : first->cluster_) threads += each->alive_;
    return threads;
}

// Starts the next phase, if all threads are here.
void Block::complete_cluster_barrier() {
    Block& leader = *first;
    if (leader.cluster_arrived_ == 0 || leader.cluster_arrived_ < cluster_alive()) return;
    leader.cluster_arrived_ = 0;
    leader.cluster_phase_++;
    for (Block* each : leader.cluster_)
        for (unsigned i = 0; i < each->thread_count_; i++) {
            Thread& thread = each->all[i];
            if (thread.waits_for && thread.waits_at == cluster_barrier()) wake(thread);
        }
}

void Block::cluster_arrive() {
    Thread& thread = *current;
    if (thread.cluster_arrived)
        fault(error::launch_failed, "barrier.cluster.arrive: the thread arrived before, and has not waited");
    thread.cluster_arrived = true;
    thread.cluster_phase = first->cluster_phase_;
    first->cluster_arrived_++;
    complete_cluster_barrier();
}

void Block::cluster_wait() {
    Thread& thread = *current;
    if (!thread.cluster_arrived) fault(error::launch_failed, "barrier.cluster.wait: the thread has not arrived");
    thread.cluster_arrived = false;
    if (first->cluster_phase_ == thread.cluster_phase)
        wait("barrier.cluster", cluster_barrier());
    else
        yield(); // who goes first from here is the order's choice
}

} // namespace emulator
