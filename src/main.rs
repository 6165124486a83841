//! The one binary. It parses, wires a role of the libraries to the terminal, and turns the end into an exit code.

mod cli;
mod demo;

fn main() -> std::process::ExitCode {
    cli::run()
}
