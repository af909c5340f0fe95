// A fiber: a stack and a place to continue. Every CUDA thread of a block is one.
//
// Switching saves the registers that a C call preserves, exchanges the stack pointer and returns on
// the other stack: about two nanoseconds on x86-64. Other hosts take ucontext, slower, same effect.
//
//   prepare(fiber, stack, size, entry)   the first switch to it calls entry(), which never returns
//   switch_fiber(from, to)               continue `to`; returns when somebody switches back
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

struct Fiber {
#ifdef __x86_64__
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

void prepare(Fiber& fiber, void* stack, std::size_t size, void (*entry)());
void switch_fiber(Fiber& from, Fiber& to);

} // namespace emulator
