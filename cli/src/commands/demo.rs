//! `kadence demo`: the same code as the real thing, on a simulated cluster.

use crate::args::{Demo, Global};
use crate::exit::{Exit, Failure};

pub(crate) fn run(_global: &Global, _args: &Demo) -> Result<Exit, Failure> {
    Err(Failure::new(Exit::Failed, "E-DEMO", "the demo is not there yet"))
}
