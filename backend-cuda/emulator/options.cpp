#include "options.hpp"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace emulator {
namespace {

[[noreturn]] void refuse(const char* name, const std::string& given, const char* expected) {
    std::fprintf(stderr, "emulator: %s=%s is not understood; expected %s\n", name, given.c_str(), expected);
    std::exit(2);
}

unsigned long number(const char* name, const std::string& text) {
    char* end = nullptr;
    unsigned long value = std::strtoul(text.c_str(), &end, 10);
    if (text.empty() || *end != 0) refuse(name, text, "a whole number");
    return value;
}

void read_order(Options& options, const std::string& text) {
    if (text == "forward") {
        options.order = Order::Forward;
    } else if (text == "reverse") {
        options.order = Order::Reverse;
    } else if (text.rfind("shuffle:", 0) == 0) {
        options.order = Order::Shuffle;
        options.seed = number("FP4_EMULATOR_ORDER", text.substr(8));
    } else {
        refuse("FP4_EMULATOR_ORDER", text, "forward, reverse or shuffle:SEED");
    }
}

void read_fail(Options& options, std::string text) {
    while (!text.empty()) {
        auto comma = text.find(',');
        auto item = text.substr(0, comma);
        text = comma == std::string::npos ? "" : text.substr(comma + 1);
        auto colon = item.find(':');
        auto kind = item.substr(0, colon);
        auto count = colon == std::string::npos ? "" : item.substr(colon + 1);
        unsigned long* target = kind == "alloc"    ? &options.fail_alloc
                                : kind == "launch" ? &options.fail_launch
                                : kind == "sync"   ? &options.fail_sync
                                : kind == "module" ? &options.fail_module
                                : kind == "set"    ? &options.fail_set
                                : kind == "large"  ? &options.fail_large
                                                   : nullptr;
        if (!target) refuse("FP4_EMULATOR_FAIL", item, "alloc:N, launch:N, sync:N, module:N, set:N or large:BYTES");
        *target = number("FP4_EMULATOR_FAIL", count);
    }
}

Options read() {
    Options options;
    if (auto* text = std::getenv("FP4_EMULATOR_SM")) options.sm = static_cast<int>(number("FP4_EMULATOR_SM", text));
    if (auto* text = std::getenv("FP4_EMULATOR_DEVICES"))
        options.devices = static_cast<int>(number("FP4_EMULATOR_DEVICES", text));
    if (auto* text = std::getenv("FP4_EMULATOR_MEMORY")) options.memory = number("FP4_EMULATOR_MEMORY", text);
    if (auto* text = std::getenv("FP4_EMULATOR_ORDER")) read_order(options, text);
    if (auto* text = std::getenv("FP4_EMULATOR_ASYNC")) {
        std::string word = text;
        if (word != "late" && word != "early") refuse("FP4_EMULATOR_ASYNC", word, "late or early");
        options.late = word == "late";
    }
    if (auto* text = std::getenv("FP4_EMULATOR_FAIL")) read_fail(options, text);
    return options;
}

} // namespace

Options& options() {
    static Options instance = read();
    return instance;
}

} // namespace emulator
