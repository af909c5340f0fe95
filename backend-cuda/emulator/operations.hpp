// What device.hpp calls: everything that needs other threads, shared memory checks or time.
#pragma once

#include <cstdint>

namespace emulator {

// ---- barriers (warp.cpp) ----
void barrier_sync(int id, int threads); // threads 0: all of the block that have not ended
void barrier_arrive(int id, int threads);
void thread_left(); // a thread has ended: barriers that count all may be complete

// ---- warp operations (warp.cpp): every lane of the mask calls, the last computes for all ----

using Compute = void (*)(void* const operands[32], unsigned mask);
void warp_operation(const char* name, unsigned mask, void* operand, Compute compute);

void sync_warp(unsigned mask);
enum class Shuffle { Index, Up, Down, Xor };
std::uint64_t shuffle(unsigned mask, std::uint64_t value, Shuffle kind, unsigned argument, unsigned width);
unsigned ballot(unsigned mask, bool predicate);
enum class Reduce { Add, AddSigned, Min, MinSigned, Max, MaxSigned, And, Or, Xor };
unsigned reduce(unsigned mask, unsigned value, Reduce kind);
unsigned match_any(unsigned mask, std::uint64_t value);

// ---- tensor cores (tensor.cpp) ----
void mma(int (&d)[4], const unsigned* a, const unsigned* b, int k, bool a_unsigned);
void ldmatrix(unsigned* r, const void* row, int matrices, bool transposed);

void wgmma_fence();
void wgmma_issue(int* d, int n, bool a_unsigned, const unsigned* a, std::uint64_t a_descriptor,
                 std::uint64_t b_descriptor, bool add);
void wgmma_commit();
void wgmma_wait(int left);
std::uint64_t smem_descriptor(const void* tile, unsigned lead_bytes, unsigned stride_bytes, unsigned swizzle);

// ---- asynchronous copies and mbarriers (async.cpp) ----
void cp_async(void* smem, const void* global, unsigned bytes, bool valid);
void cp_async_commit();
void cp_async_wait(int left);
void mbarrier_init(void* mbarrier, unsigned count);
void mbarrier_arrive(void* mbarrier, unsigned expected_bytes, unsigned count = 1);
void mbarrier_arrive_in(void* mbarrier, unsigned rank); // of a block of the cluster
bool mbarrier_try_wait(void* mbarrier, unsigned parity);
void bulk_copy_g2s(void* smem, const void* global, unsigned bytes, void* mbarrier);
void bulk_copy_multicast(void* smem, const void* global, unsigned bytes, void* mbarrier, unsigned ranks);
// Does one copy of a cluster that was put off; false if there is none.
class Block;
bool late_bulk_copy(Block& first);

} // namespace emulator
