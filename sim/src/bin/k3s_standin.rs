//! The `k3s` stand-in for test hosts; see `kadence_sim::standin`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kadence_sim::standin::run()
}
