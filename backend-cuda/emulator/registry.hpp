// The kernels that are linked in, by name. EXPORT(name) makes a Registration.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace emulator {

struct Kernel {
    std::string name;
    // Runs one thread of the kernel on arguments as the driver gives them: an array of pointers.
    void (*call)(const void* function, void* const* arguments);
    const void* function;
    std::vector<std::size_t> argument_bytes;
    std::vector<bool> argument_may_point; // pointers, and structs that may hold some
    unsigned cluster;                     // blocks of a cluster, along x
};

std::map<std::string, Kernel>& kernels();

class Registration {
public:
    template <class... P>
    Registration(const char* name, void (*function)(P...), unsigned cluster = 1) {
        kernels()[name] = {name, &call<P...>, reinterpret_cast<const void*>(function), {sizeof(P)...},
                           {(std::is_pointer_v<P> || std::is_class_v<P>)...}, cluster};
    }

private:
    template <class... P>
    static void call(const void* function, void* const* arguments) {
        apply(reinterpret_cast<void (*)(P...)>(const_cast<void*>(function)), arguments, std::index_sequence_for<P...>());
    }
    template <class... P, std::size_t... I>
    static void apply(void (*function)(P...), void* const* arguments, std::index_sequence<I...>) {
        (void)arguments; // where there are none
        function(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
    }
};

} // namespace emulator
