//! `kadence`: keeps K3s clusters regularly and safely updated.

mod args;
mod commands;
mod exit;
mod open;
mod screen;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use kadence_core::event::Request;

use crate::args::{Command, Global, Kadence, Output};
use crate::commands::{demo, init, look, roll};
use crate::exit::{Exit, Failure};

fn main() -> ExitCode {
    let args = match Kadence::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Wrong } else { Exit::Done };
            let _ = error.print();
            return exit.into();
        }
    };
    match run(&args) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            report(&args.global, &failure);
            failure.exit.into()
        }
    }
}

fn run(args: &Kadence) -> Result<Exit, Failure> {
    // What needs no runtime answers at once.
    match &args.command {
        Command::Config { what } => return look::config(&args.global, *what),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Kadence::command(), "kadence", &mut std::io::stdout());
            return Ok(Exit::Done);
        }
        Command::Man { folder } => {
            return clap_mangen::generate_to(Kadence::command(), folder)
                .map(|()| Exit::Done)
                .map_err(|e| Failure::new(Exit::Wrong, "E-MAN", e.to_string()));
        }
        _ => {}
    }
    log(args.global.verbose);
    // Ring everywhere: no C toolchain beyond what it brings.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Command::Demo(demo) = &args.command {
        return demo::run(&args.global, demo);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Failed, "E-RUNTIME", e.to_string()))?;
    runtime.block_on(command(args))
}

async fn command(args: &Kadence) -> Result<Exit, Failure> {
    let global = &args.global;
    match &args.command {
        Command::Init(init) => init::run(global, init).await,
        Command::Inspect { cluster } => look::inspect(global, cluster).await,
        Command::Check(check) => look::check(global, check).await,
        Command::Plan(plan) => look::plan(global, plan).await,
        Command::Apply(apply) => Box::pin(roll::apply(global, apply)).await,
        Command::Pause { cluster } => roll::ask(global, cluster, Request::Pause).await,
        Command::Abort { cluster } => roll::ask(global, cluster, Request::Abort).await,
        Command::Resume(resume) => Box::pin(roll::resume(global, resume)).await,
        Command::Rollback(rollback) => Box::pin(roll::rollback(global, rollback)).await,
        Command::Validate { cluster } => look::validate(global, cluster).await,
        Command::Status { cluster } => look::status(global, cluster.as_deref()).await,
        Command::History { cluster } => look::history(global, cluster).await,
        Command::Why { cluster } => look::why(global, cluster).await,
        Command::Report(report) => look::report(global, report).await,
        Command::Config { .. } | Command::Completions { .. } | Command::Man { .. } | Command::Demo(_) => Ok(Exit::Done),
    }
}

fn report(global: &Global, failure: &Failure) {
    screen::say(format!("kadence: {failure}"));
    if global.output == Output::Json {
        let document = serde_json::json!({
            "schema": 1,
            "error": { "code": failure.code, "exit": failure.exit as u8, "what": failure.what, "next": failure.next },
        });
        screen::print(&format!("{document:#}\n"));
    }
}

fn log(verbose: u8) {
    let level = match verbose {
        0 => "error,kube=off,kube_client=off",
        1 => "warn,kube=off,kube_client=off,kadence=info",
        _ => "info,kadence=debug,kube=debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("KADENCE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
