use std::time::Instant;

use jiff::SignedDuration;
use kadence_core::config::ConditionProbe;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::*;

fn probe(test: ProbeTest, within: SignedDuration) -> Probe {
    Probe { name: "shop".to_owned(), test, within }
}

async fn outcome(test: ProbeTest) -> Result<(), String> {
    Probes::new().expect("probes").probe(&probe(test, SignedDuration::from_secs(20))).await
}

async fn outcome_within(test: ProbeTest, within: SignedDuration) -> Result<(), String> {
    Probes::new().expect("probes").probe(&probe(test, within)).await
}

mod http {
    use super::*;

    /// Answers every connection with these bytes and closes it; without bytes it never answers.
    async fn serving(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                if answer.is_empty() {
                    open.push(stream);
                } else {
                    let _ = stream.write_all(answer).await;
                }
            }
        });
        format!("http://{address}/health?token=hunter2")
    }

    fn get(url: String, status: u16, contains: Option<&str>) -> ProbeTest {
        ProbeTest::Http(HttpProbe { url, status, contains: contains.map(str::to_owned) })
    }

    const SHOP: &[u8] =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nopen \r\n8\r\nfor all!\r\n0\r\n\r\n";

    #[tokio::test]
    async fn passes_with_the_status_and_the_text_even_across_chunks() {
        assert_eq!(outcome(get(serving(SHOP).await, 200, None)).await, Ok(()));
        assert_eq!(outcome(get(serving(SHOP).await, 200, Some("open for all!"))).await, Ok(()));
        assert_eq!(outcome(get(serving(SHOP).await, 200, Some(""))).await, Ok(()));
    }

    #[tokio::test]
    async fn fails_with_what_was_seen_instead() {
        let seen = outcome(get(serving(SHOP).await, 204, None)).await;
        assert_eq!(seen, Err("answered 200 OK instead of 204".to_owned()));
        let seen = outcome(get(serving(SHOP).await, 200, Some("closed"))).await;
        assert_eq!(seen, Err("answered 200 OK, but without `closed` in its body (13 bytes looked at)".to_owned()));
    }

    #[tokio::test]
    async fn does_not_follow_redirects_and_says_where_they_lead() {
        let moved =
            b"HTTP/1.1 302 Found\r\nlocation: https://login.test/in?session=hunter2\r\ncontent-length: 0\r\n\r\n";
        let seen = outcome(get(serving(moved).await, 200, None)).await;
        assert_eq!(seen, Err("answered 302 Found instead of 200, which leads to https://login.test/in".to_owned()));
        assert_eq!(outcome(get(serving(moved).await, 302, None)).await, Ok(()));
    }

    #[tokio::test]
    async fn fails_where_nobody_answers_without_repeating_the_address() {
        let within = SignedDuration::from_millis(200);
        let seen = outcome_within(get(serving(b"").await, 200, None), within).await;
        assert_eq!(seen, Err("no answer within 200ms".to_owned()));

        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port");
        let seen = outcome(get(format!("http://{free}/?token=hunter2"), 200, None)).await.expect_err("refused");
        assert!(seen.contains("Connection refused") && !seen.contains("hunter2"), "{seen}");
        let seen = outcome(get(serving(b"not http\r\n\r\n").await, 200, None)).await.expect_err("no HTTP");
        assert!(!seen.contains("hunter2"), "{seen}");
        assert!(outcome(get("shop.test".to_owned(), 200, None)).await.is_err());
    }

    #[tokio::test]
    async fn with_a_body_that_breaks_off_fails() {
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nopen";
        assert!(outcome(get(serving(cut).await, 200, Some("closed"))).await.is_err());
    }
}

mod tcp {
    use super::*;

    #[tokio::test]
    async fn passes_if_a_connection_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        assert_eq!(outcome(ProbeTest::Tcp(address.clone())).await, Ok(()));
        drop(listener);
        let seen = outcome(ProbeTest::Tcp(address)).await.expect_err("refused");
        assert!(seen.contains("Connection refused"), "{seen}");
        assert!(outcome(ProbeTest::Tcp("no port".to_owned())).await.is_err());
    }
}

mod commands {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    fn argv(of: &[&str]) -> ProbeTest {
        ProbeTest::Command(of.iter().map(|it| (*it).to_owned()).collect())
    }

    /// Waits until the process is gone. Bounded by the test's own deadline, not by a guess.
    async fn gone(pid: &str) {
        let proc = format!("/proc/{pid}/stat");
        let ended = async {
            // A zombie has ended: only whoever started it has not asked yet.
            while fs_err::read_to_string(&proc).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), ended).await.expect("the process ends");
    }

    #[tokio::test]
    async fn pass_with_exit_code_0_and_tell_their_last_words_else() {
        assert_eq!(outcome(argv(&["true"])).await, Ok(()));
        assert_eq!(outcome(argv(&["false"])).await, Err("false ended with exit code 1".to_owned()));
        let seen = outcome(ProbeTest::Command(sh("echo fine; echo 'no\u{7} route' >&2; echo >&2; exit 3"))).await;
        assert_eq!(seen, Err("sh ended with exit code 3: no route".to_owned()));
        let seen = outcome(ProbeTest::Command(sh("kill -TERM $$"))).await;
        assert_eq!(seen, Err("sh was ended by signal 15".to_owned()));
        let seen = outcome(argv(&["/no/such/program"])).await.expect_err("not there");
        assert!(seen.starts_with("/no/such/program could not be started"), "{seen}");
        assert_eq!(outcome(argv(&[])).await, Err("no program is named".to_owned()));
    }

    #[tokio::test]
    async fn get_their_arguments_as_they_are() {
        let test = argv(&["sh", "-c", r#"test "$1" = '$(reboot); *' && test $# = 1"#, "sh", "$(reboot); *"]);
        assert_eq!(outcome(test).await, Ok(()));
    }

    #[tokio::test]
    async fn that_do_not_end_are_killed_with_all_they_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let pids = folder.path().join("pids");
        let script = format!("sleep 1000 & echo $! $$ > {0}.new; mv {0}.new {0}; echo waiting; wait", pids.display());
        let seen = outcome_within(ProbeTest::Command(sh(&script)), SignedDuration::from_secs(3)).await;
        assert_eq!(seen, Err("sh did not end within 3s and was killed: waiting".to_owned()));
        for pid in fs_err::read_to_string(&pids).expect("pids").split_whitespace() {
            gone(pid).await;
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_any_more_are_killed_with_all_they_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("pids");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
        assert!(made.success());
        let script = format!("sleep 1000 & echo $! $$ > {}; wait", fifo.display());
        let running = tokio::spawn(outcome(ProbeTest::Command(sh(&script))));
        let mut line = String::new();
        // Opening a fifo waits for the other side.
        let file = tokio::fs::File::open(&fifo).await.expect("the fifo");
        BufReader::new(file).read_line(&mut line).await.expect("pids");
        running.abort();
        for pid in line.split_whitespace() {
            gone(pid).await;
        }
    }

    #[tokio::test]
    async fn may_say_as_much_as_they_like() {
        let script = "head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2; exit 1";
        let seen = outcome(ProbeTest::Command(sh(script))).await.expect_err("exit code 1");
        assert_eq!(seen, format!("sh ended with exit code 1: {}", "y".repeat(200)));
    }

    #[tokio::test]
    async fn are_not_held_by_what_they_leave_behind() {
        let began = Instant::now();
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}", pid.display());
        assert_eq!(outcome(ProbeTest::Command(sh(&script))).await, Ok(()));
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        let pid = fs_err::read_to_string(pid).expect("a pid");
        let killed = std::process::Command::new("kill").arg(pid.trim()).status().expect("kill");
        assert!(killed.success());
    }

    #[tokio::test]
    async fn for_a_datastore_read_and_write_files() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let (dump, copy) = (folder.path().join("dump"), folder.path().join("copy"));
        let probes = Probes::new().expect("probes");
        let run = probes.command(&sh("echo rows"), None, Some(&dump)).await.expect("a dump");
        assert_eq!(run, CommandRun { exit: 0, bytes_out: 5 });
        fs_err::write(&copy, "something longer from before").expect("a file");
        let run = probes.command(&["cat".to_owned()], Some(&dump), Some(&copy)).await.expect("a copy");
        assert_eq!((run.bytes_out, fs_err::read(&copy).expect("a copy")), (5, b"rows\n".to_vec()));
        for file in [&dump, &copy] {
            assert_eq!(fs_err::metadata(file).expect("a file").permissions().mode() & 0o777, 0o600);
        }
        let run = probes.command(&["cat".to_owned()], Some(&dump), None).await.expect("read");
        assert_eq!(run.bytes_out, 5);
    }

    #[tokio::test]
    async fn for_a_datastore_that_fail_say_why() {
        let folder = tempfile::tempdir().expect("a folder");
        let dump = folder.path().join("dump");
        let probes = Probes { datastore_within: Duration::from_secs(1), ..Probes::new().expect("probes") };
        let seen = probes.command(&sh("echo half; echo 'db: gone away' >&2; exit 2"), None, Some(&dump)).await;
        assert_eq!(seen, Err("sh ended with exit code 2: db: gone away".to_owned()));
        let seen = probes.command(&sh("sleep 1000"), None, Some(&dump)).await;
        assert_eq!(seen, Err("sh did not end within 1s and was killed".to_owned()));
        let missing = folder.path().join("missing");
        let seen = probes.command(&sh("cat"), Some(&missing), None).await.expect_err("no input");
        assert!(seen.contains("missing"), "{seen}");
        assert_eq!(probes.command(&[], None, None).await, Err("no program is named".to_owned()));
    }
}

#[tokio::test]
async fn conditions_are_not_performed_here() {
    let condition = ConditionProbe {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        namespace: None,
        name: "shop".to_owned(),
        condition: "Available".to_owned(),
    };
    let seen = outcome(ProbeTest::Condition(condition)).await;
    assert_eq!(seen, Err("conditions are asked of the cluster's API by the engine, not here".to_owned()));
}

#[tokio::test]
async fn a_probe_without_time_fails() {
    let test = ProbeTest::Command(vec!["true".to_owned()]);
    assert!(outcome_within(test.clone(), SignedDuration::ZERO).await.is_err());
    assert!(outcome_within(test, SignedDuration::from_secs(-1)).await.is_err());
}
