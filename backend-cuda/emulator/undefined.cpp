// Where g++'s checks for undefined behaviour report. The kernels are built with
// -fsanitize=alignment,bounds,shift-exponent: a vector load from an address that is not its
// multiple faults on a device, an index past an array reads somebody else's registers or memory,
// and a shift by the width or more means one thing to a compiler and another to the machine. The
// compiler calls these functions by name; there is no run-time library behind them.

#include "block.hpp"
#include "errors.hpp"

#include <cstdint>

namespace {

struct Location {
    const char* file;
    std::uint32_t line, column;
};
struct Mismatch {
    Location at;
    const void* type;
    unsigned char log_align, kind;
};
struct OutOfBounds {
    Location at;
    const void *array_type, *index_type;
};
struct Shift {
    Location at;
    const void *left_type, *right_type;
};

} // namespace

using emulator::block;
namespace error = emulator::error;

extern "C" {

[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const Mismatch* data, const void* pointer) {
    block->fault(error::misaligned_address, "%s:%u: address %p is not a multiple of %u", data->at.file, data->at.line, pointer,
                 1u << data->log_align);
}

[[noreturn]] void __ubsan_handle_out_of_bounds_abort(const OutOfBounds* data, std::uintptr_t index) {
    block->fault(error::illegal_address, "%s:%u: index %ld is outside of the array", data->at.file, data->at.line,
                 static_cast<long>(index));
}

[[noreturn]] void __ubsan_handle_shift_out_of_bounds_abort(const Shift* data, std::uintptr_t, std::uintptr_t by) {
    block->fault(error::launch_failed, "%s:%u: a shift by %ld", data->at.file, data->at.line, static_cast<long>(by));
}
}
