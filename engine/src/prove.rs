//! Watches a restarted node until core judges it proven, failed or out of sight.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use jiff::SignedDuration;
use tokio::time::{Instant, sleep_until};

use kadence_core::apply::action::{Outcome, Report};
use kadence_core::fact::Fact;
use kadence_core::ident::ActionId;
use kadence_core::inventory::ApiNode;
use kadence_core::validate::prove::{Goal, Judgement, Signs};

use crate::Engine;
use crate::ports::{Progress, Readyz, Sign};

/// How often a server's own `/readyz` is asked: while it is not ready, and after.
const ASK_UNTIL_READY: Duration = Duration::from_millis(200);
const ASK_WHEN_READY: Duration = Duration::from_secs(1);
/// How long after the way to a node broke it is tried again.
const FOLLOW_AGAIN: Duration = Duration::from_millis(500);

impl Engine {
    pub(crate) async fn prove(&self, id: &ActionId, goal: &Goal, address: Option<&str>) -> Outcome {
        let began = self.clock.now();
        let mut signs = Signs::new(began);
        let mut node = self.api.watch_node(&goal.node);
        let mut host = self.hosts.follow(&goal.node, goal.role);
        let mut host_again: Option<Instant> = None;
        // Kept over the turns of the loop, so that other signs do not cut a question short.
        let mut asking = address.filter(|_| goal.apiserver).map(|a| self.ask_ready(a, Instant::now()));
        let mut said = String::new();
        loop {
            let now = self.clock.now();
            let look_again = match signs.judge(goal, now) {
                Judgement::Proven(proof) => {
                    return Outcome::Done { took: now.duration_since(began), report: Report::Proven { proof } };
                }
                Judgement::Failed(failure) => return Outcome::Failed { took: now.duration_since(began), failure },
                Judgement::Unknown(why) => return Outcome::Unknown { why },
                Judgement::NotYet { waits_for, look_again } => {
                    if waits_for != said {
                        said.clone_from(&waits_for);
                        self.observer.progress(&Progress::Waiting {
                            action: id.clone(),
                            node: Some(goal.node.clone()),
                            what: waits_for,
                            since: now.duration_since(began),
                            about: None,
                        });
                    }
                    look_again
                }
            };
            let judge_at = Instant::now() + to_std(look_again.duration_since(now));
            let follow_at = host_again.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                sign = host.next(), if host_again.is_none() => match sign {
                    Some(Ok(sign)) => take(&mut signs, sign),
                    Some(Err(error)) => {
                        signs.no_way(&error.to_string());
                        host_again = Some(Instant::now() + FOLLOW_AGAIN);
                    }
                    None => {
                        signs.no_way("the connection ended");
                        host_again = Some(Instant::now() + FOLLOW_AGAIN);
                    }
                },
                Some(seen) = node.next() => saw(&mut signs, &seen),
                () = sleep_until(follow_at), if host_again.is_some() => {
                    host = self.hosts.follow(&goal.node, goal.role);
                    host_again = None;
                }
                ready = async {
                    match asking.as_mut() {
                        Some(asking) => asking.await,
                        None => std::future::pending().await,
                    }
                }, if asking.is_some() => {
                    signs.apiserver(ready);
                    let pause = if ready { ASK_WHEN_READY } else { ASK_UNTIL_READY };
                    asking = address.map(|a| self.ask_ready(a, Instant::now() + pause));
                }
                () = sleep_until(judge_at) => {}
            }
        }
    }

    fn ask_ready(&self, address: &str, at: Instant) -> BoxFuture<'static, bool> {
        let (api, address) = (Arc::clone(&self.api), address.to_owned());
        async move {
            sleep_until(at).await;
            api.ready(&address).await.is_ok_and(|r| r == Readyz::Ready)
        }
        .boxed()
    }
}

fn take(signs: &mut Signs, sign: Sign) {
    match sign {
        Sign::Unit(unit) => signs.unit(unit),
        Sign::Etcd(etcd) => signs.etcd(etcd),
        Sign::Journal { class, line } => signs.journal(&class, &line),
        Sign::Process(process) => signs.process(process),
    }
}

fn saw(signs: &mut Signs, node: &ApiNode) {
    if let (Fact::Known(version), Fact::Known(ready)) = (&node.version, &node.ready) {
        signs.node(version.clone(), *ready, node.reported.clone());
    }
}

pub(crate) fn to_std(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or(Duration::ZERO)
}
