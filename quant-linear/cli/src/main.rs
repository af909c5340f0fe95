//! The `fp4` command: what it does is the library's.

fn main() -> std::process::ExitCode {
    fp4_cli::main()
}
