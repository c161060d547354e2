#![allow(clippy::all, clippy::print_stderr, clippy::print_stdout, reason = "temporary")]
use std::time::{Duration, Instant};
use futures_util::StreamExt as _;
use kadence_engine::ports::Api;
use kadence_core::ident::NodeName;
#[tokio::test(flavor = "multi_thread")]
async fn tmp() {
    let Some(k) = std::env::var_os("KADENCE_TEST_KUBECONFIG") else { return };
    let host = std::env::var("TMP_HOST").unwrap();
    let cmd = std::env::var("TMP_CMD").unwrap();
    let api = std::sync::Arc::new(kadence_kubernetes::KubeApi::connect(std::path::Path::new(&k), None).unwrap());
    let f = api.facts().await.unwrap();
    let servers = f.endpoints.known().unwrap().clone();
    let target = f.nodes.known().unwrap().iter().find(|n| n.name.as_str()==host).unwrap().internal_ip.clone().unwrap();
    api.learn_servers(&servers);
    println!("servers {servers:?} target {target}");
    let begun = Instant::now();
    let mut w = api.watch_node(&NodeName::new(host.as_str()));
    tokio::spawn(async move { while let Some(n) = w.next().await { println!("{:7.3} watch {} ready={:?} v={:?} rv?", begun.elapsed().as_secs_f64(), n.name, n.ready, n.version.known().map(|v|v.to_string())); } });
    for kind in ["read","write","target"] {
        let api = api.clone(); let servers = servers.clone(); let target = target.clone();
        tokio::spawn(async move {
            let mut i = 0; let mut last_ok = Instant::now(); let mut bad = false; let mut worst = Duration::ZERO;
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            loop {
                tick.tick().await;
                let s = &servers[i % servers.len()]; i += 1;
                let t = Instant::now();
                let r = match kind { "read" => api.probe_read(s).await, "write" => api.probe_write(s).await, _ => api.ready(&target).await.map(|r| if r != kadence_engine::ports::Readyz::Ready { println!("{:7.3} readyz {r:?}", begun.elapsed().as_secs_f64()) }) };
                match r {
                    Ok(()) => { if bad { println!("{:7.3} {kind} ok again at {s} gap {:?}", begun.elapsed().as_secs_f64(), last_ok.elapsed()); worst = worst.max(last_ok.elapsed()); bad=false; } last_ok = Instant::now(); if t.elapsed()>Duration::from_millis(200) { println!("{:7.3} {kind} slow {s} {:?}", begun.elapsed().as_secs_f64(), t.elapsed()); } }
                    Err(e) => { if !bad || kind != "target" { println!("{:7.3} {kind} {s} after {:?}: {e}", begun.elapsed().as_secs_f64(), t.elapsed()); } bad = true; }
                }
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("{:7.3} do {cmd}", begun.elapsed().as_secs_f64());
    let out = tokio::task::spawn_blocking(move || std::process::Command::new("bash").arg("-c").arg(cmd).output().unwrap()).await.unwrap();
    println!("{:7.3} done {} {}", begun.elapsed().as_secs_f64(), out.status, String::from_utf8_lossy(&out.stderr));
    for _ in 0..3 {
    tokio::time::sleep(Duration::from_secs(3)).await;
    let t = Instant::now(); let r = api.facts().await; println!("{:7.3} facts {:?} {:?}", begun.elapsed().as_secs_f64(), t.elapsed(), r.map(|f| f.surroundings.storage_size));
    }
    let rss = std::fs::read_to_string("/proc/self/status").unwrap(); println!("{}", rss.lines().filter(|l| l.starts_with("VmHWM")||l.starts_with("VmRSS")).collect::<Vec<_>>().join(" "));
}
