//! The `fp4-conformance` command: the backends compiled in.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    fp4_conformance::main_with(fp4_conformance::registry::known())
}
