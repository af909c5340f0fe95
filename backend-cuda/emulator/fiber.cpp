#include "fiber.hpp"

#include <cstdint>

#ifdef __x86_64__

// rdi: where to keep the old stack pointer; rsi: the new one. The six pushed registers and the
// stack pointer are all that the System V calling convention asks a callee to preserve; the
// rounding mode is the same on both sides.
asm(R"(
.text
.p2align 4
.globl fp4_emulator_switch
.hidden fp4_emulator_switch
.type fp4_emulator_switch, @function
fp4_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size fp4_emulator_switch, .-fp4_emulator_switch
)");

extern "C" void fp4_emulator_switch(void** save, void* load);

namespace emulator {

void prepare(Fiber& fiber, void* stack, std::size_t size, void (*entry)()) {
    // From the top: a null return address, so that `entry` sees the alignment of a call; `entry`,
    // which the switch returns to; six registers to pop.
    auto top = (reinterpret_cast<std::uintptr_t>(stack) + size) & ~std::uintptr_t{15};
    auto* words = reinterpret_cast<void**>(top) - 8;
    for (int i = 0; i < 8; i++) words[i] = nullptr;
    words[6] = reinterpret_cast<void*>(entry);
    fiber.stack_pointer = words;
}

void switch_fiber(Fiber& from, Fiber& to) { fp4_emulator_switch(&from.stack_pointer, to.stack_pointer); }

} // namespace emulator

#else

namespace emulator {

void prepare(Fiber& fiber, void* stack, std::size_t size, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = size;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

} // namespace emulator

#endif
