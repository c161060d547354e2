use kadence_engine::ports::*;
use kadence_core::inventory::Role;
use kadence_core::config::*;
use futures_util::StreamExt;
#[tokio::main(flavor="multi_thread")]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let dir = std::env::var("HD").expect("HD");
    let cluster: Cluster = serde_json::from_value(serde_json::json!({"environment":"t","kubeconfig":"/x",
      "ssh":{"key": std::env::var("KEY").expect("KEY"),"known_hosts": format!("{dir}/known_hosts"), "user": std::env::var("SSHUSER").unwrap_or("root".into()),
        "sudo": serde_json::from_str::<serde_json::Value>(&std::env::var("SUDO").unwrap_or("\"no\"".into())).expect("sudo")},
      "nodes":{"n":{"address":std::fs::read_to_string(format!("{dir}/ip")).expect("ip").trim()}}})).expect("cluster");
    let hosts = kadence_ssh::SshHosts::new(&cluster, kadence_ssh::HmacKey::new([1;32])).expect("hosts");
    let n = "n".into();
    let t = std::time::Instant::now();
    match a[1].as_str() {
        "facts" => { let f = hosts.facts(&n).await; match f { Ok(f)=>println!("{}", serde_json::to_string_pretty(&f).expect("j")), Err(e)=>println!("ERR {e}") } eprintln!("{:?}", t.elapsed());
            let t = std::time::Instant::now(); let _=hosts.facts(&n).await; eprintln!("warm facts {:?}", t.elapsed());
            let t = std::time::Instant::now(); println!("{:?}", hosts.glance(&n).await); eprintln!("warm glance {:?}", t.elapsed()); }
        "stage" => { let b = std::fs::read(&a[2]).expect("f"); let d = kadence_core::ident::Digest::of(&b);
            let art = Artifact{version:a[3].parse().expect("v"),arch:kadence_core::inventory::Arch::Amd64,digest:d,path:a[2].clone().into(),bytes:b.len() as u64,kind:ArtifactKind::Binary};
            let t = std::time::Instant::now(); println!("{d} {:?} {:?}", hosts.stage(&n,&art).await, t.elapsed()); }
        "act" => { let task: Task = serde_json::from_str(&a[4]).expect("task");
            let role = if std::env::var("ROLE").is_ok() {Role::Agent} else {Role::Server};
            let r = hosts.act(&n,&Order{id:kadence_core::ident::ActionId::new(a[2].clone()),turn:a[3].parse().expect("t"),rollout:"r".into(),plan:"p".into(),role,task}).await;
            println!("{:?} {:?}", r, t.elapsed()); }
        "pull" => { println!("{:?}", hosts.pull(&n,&RemoteFile{path:a[2].clone(),bytes:a[3].parse().expect("b"),digest:a[4].parse().expect("d")},std::path::Path::new(&a[5])).await); }
        "tidy" => { println!("{:?}", hosts.tidy(&n,&Keep{binaries:vec![],rollouts:vec![]}).await); }
        "follow" => { let mut s = hosts.follow(&n, Role::Server); let end = tokio::time::Instant::now()+std::time::Duration::from_secs(a[2].parse().expect("s"));
            while let Ok(Some(x)) = tokio::time::timeout_at(end, s.next()).await { println!("{:?} {:?}", t.elapsed(), x); } }
        _ => {}
    }
}
