//! The command line's words.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kadence_core::ident::NodeName;
use kadence_core::version::Version;

use crate::commands::demo::Trouble;

/// Keeps K3s clusters regularly and safely updated.
#[derive(Debug, Parser)]
#[command(name = "kadence", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Kadence {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for check: ready
  1  it failed, and a person is needed
  2  the command line or the configuration is wrong
  3  refused, or not ready: no service, cordon or binary was changed
  4  it failed, and everything is back as it was
  5  held on purpose or for lack of knowledge, kadence resume goes on; for check: cannot determine";

#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The configuration file
    #[arg(long, global = true, env = "KADENCE_CONFIG", default_value = "kadence.yaml", value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The folder for state and backups [default: `state` beside the configuration]
    #[arg(long, global = true, env = "KADENCE_STATE", value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Where releases come from, instead of what the configuration says
    #[arg(long, global = true, env = "KADENCE_RELEASES", value_name = "URL_OR_DIR")]
    pub(crate) releases: Option<String>,
    /// Print facts as text or as one JSON document
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Say more: -v reasons, -vv requests
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Find a cluster and write kadence.yaml
    Init(Init),
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        what: ConfigWhat,
    },
    /// Show what runs on a cluster
    Inspect { cluster: String },
    /// Say whether a cluster is ready to be updated
    Check(Check),
    /// Make a plan and keep it
    Plan(Plan),
    /// Carry a plan out
    Apply(Apply),
    /// Stop the running rollout before its next node
    Pause { cluster: String },
    /// Go on with a rollout that was held, paused or killed
    Resume(Resume),
    /// End the running rollout after the node in hand
    Abort { cluster: String },
    /// Bring a cluster back to where it was before its last rollout
    Rollback(Rollback),
    /// Compare a cluster with what it should be and run its probes
    Validate { cluster: String },
    /// Show what is going on
    Status { cluster: Option<String> },
    /// Show a cluster's rollouts
    History { cluster: String },
    /// Say why this version, why not now, and what is waited for
    Why { cluster: String },
    /// Write the report of a rollout
    Report(Report),
    /// See it work on a simulated cluster: no cluster, no network
    Demo(Demo),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
    /// Write man pages into a folder
    Man { folder: PathBuf },
}

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// Ask nothing; take what the flags say and what is found
    #[arg(long)]
    pub(crate) yes: bool,
    /// The cluster's name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// production, staging, ...
    #[arg(long)]
    pub(crate) environment: Option<String>,
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    #[arg(long)]
    pub(crate) context: Option<String>,
    #[arg(long, value_name = "USER")]
    pub(crate) ssh_user: Option<String>,
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_key: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    pub(crate) known_hosts: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum ConfigWhat {
    /// Read the configuration and say what is wrong with it
    Check,
    /// Print its JSON Schema
    Schema,
}

#[derive(Args, Debug, Default)]
pub(crate) struct Target {
    /// The version to bring the cluster to [default: the newest patch of its minor]
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Option<Version>,
    /// Leave this agent out (can be repeated)
    #[arg(long, value_name = "AGENT", value_parser = node_name)]
    pub(crate) exclude: Vec<NodeName>,
    /// Stop before the agents
    #[arg(long, value_parser = ["servers"], value_name = "servers", conflicts_with = "only_agents")]
    pub(crate) until: Option<String>,
    /// Update the agents only
    #[arg(long)]
    pub(crate) only_agents: bool,
}

#[expect(clippy::unnecessary_wraps, reason = "the shape that clap's value parsers have")]
fn node_name(text: &str) -> Result<NodeName, String> {
    Ok(NodeName::new(text))
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    pub(crate) cluster: String,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args, Debug)]
pub(crate) struct Plan {
    pub(crate) cluster: String,
    #[command(flatten)]
    pub(crate) target: Target,
    /// Print the runbook: every step by hand, with its way back
    #[arg(long)]
    pub(crate) runbook: bool,
    /// Write the plan to this file, too
    #[arg(long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Apply {
    pub(crate) cluster: String,
    #[command(flatten)]
    pub(crate) target: Target,
    /// A plan that was made before: its hash, or a file
    #[arg(long, value_name = "FILE_OR_HASH", conflicts_with_all = ["to", "exclude", "until", "only_agents"])]
    pub(crate) plan: Option<String>,
    /// Consent to what the plan says, outage included
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Resume {
    pub(crate) cluster: String,
    /// Take over a rollout whose state is elsewhere, by its marks in the cluster
    #[arg(long)]
    pub(crate) adopt: bool,
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Rollback {
    pub(crate) cluster: String,
    /// Consent to the outage and to what is lost
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Declare this host powered off: it cannot be asked, and stays off (can be repeated)
    #[arg(long, value_name = "NODE", value_parser = node_name)]
    pub(crate) powered_off: Vec<NodeName>,
}

#[derive(Args, Debug)]
pub(crate) struct Report {
    pub(crate) cluster: String,
    /// The newest rollout
    #[arg(long, conflicts_with = "rollout")]
    pub(crate) last: bool,
    /// This rollout
    #[arg(long)]
    pub(crate) rollout: Option<String>,
    /// Write a self-contained page to this file; its JSON lies beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// The simulation's seed: the same seed tells the same story
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// What goes wrong in the first attempt
    #[arg(long, value_enum, default_value = "crash", value_name = "NAME")]
    pub(crate) fault: Trouble,
    /// As fast as it computes, without the pauses for the reader
    #[arg(long)]
    pub(crate) fast: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_shows_every_command_and_breaks_no_line_of_the_exit_codes() {
        let mut kadence = Kadence::command();
        for width in [60, 80, 100] {
            let help = kadence.clone().term_width(width).render_help().to_string();
            for line in EXIT_CODES.lines().filter(|l| l.chars().count() <= width) {
                assert!(help.lines().any(|l| l == line), "{width}: {line}\n{help}");
            }
        }
        let hidden: Vec<_> = kadence.get_subcommands().filter(|c| c.is_hide_set()).map(|c| c.get_name()).collect();
        assert_eq!(hidden, Vec::<&str>::new());
        assert!(kadence.render_help().to_string().contains("  man "));
    }

    #[test]
    fn every_command_flag_and_choice_is_in_the_documents() {
        let text = include_str!("../../docs/commands.md");
        let mut kadence = Kadence::command();
        kadence.build();
        let mut commands = vec![&kadence];
        let mut missing = Vec::new();
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().filter(|c| c.get_name() != "help"));
            let name = command.get_name();
            if name != "kadence" && !text.contains(&format!("`kadence {name}")) && !text.contains(&format!(" {name}`"))
            {
                missing.push(name.to_owned());
            }
            let flags =
                command.get_arguments().filter_map(clap::Arg::get_long).filter(|f| !matches!(*f, "help" | "version"));
            missing.extend(flags.map(|f| format!("--{f}")).filter(|f| !text.contains(&format!("`{f}"))));
            let with_values = command.get_arguments().filter(|a| a.get_action().takes_values());
            let values = with_values.flat_map(clap::Arg::get_possible_values);
            missing.extend(values.map(|v| v.get_name().to_owned()).filter(|v| !text.contains(&format!("{v}`"))));
        }
        assert!(missing.is_empty(), "docs/commands.md lacks {missing:?}");
    }
}
