mod host;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kadence_core::ident::Digest;
use kadence_core::inventory::Arch;
use kadence_core::version::Version;
use kadence_engine::ports::{ArtifactKind, ReleaseError, Releases};
use serde_json::json;
use tempfile::TempDir;

use self::host::{Answer, Host, Request};
use crate::github::GitHub;
use crate::http::Limits;
use crate::layout::Sums;
use crate::remote::Remote;

const BINARY: &[u8] = b"not really k3s, but as good here";
const IMAGES: &[u8] = b"an archive of images";

fn v(text: &str) -> Version {
    text.parse().expect("a version")
}

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

fn write(path: &Path, contents: impl AsRef<[u8]>) {
    fs_err::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    fs_err::write(path, contents).expect("a file");
}

fn sums(files: &[(&str, &[u8])]) -> String {
    files.iter().map(|(name, contents)| format!("{}  {name}\n", Digest::of(contents))).collect()
}

/// All files below a folder, by their path in it.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(root).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.extend(files(&entry.path()).into_iter().map(|file| format!("{name}/{file}")));
        } else {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

fn quick() -> Limits {
    Limits {
        connect: Duration::from_secs(2),
        answer: Duration::from_secs(5),
        window: Duration::from_millis(300),
        least: 1000,
        file: 1 << 20,
    }
}

async fn catalog(source: &dyn Releases) -> kadence_core::track::catalog::Catalog {
    source.catalog().await.expect("a catalog")
}

async fn binary(source: &dyn Releases, version: &str) -> Result<kadence_engine::ports::Artifact, ReleaseError> {
    source.fetch(&v(version), Arch::Amd64, ArtifactKind::Binary).await
}

mod sources {
    use super::*;

    #[test]
    fn a_source_is_a_folder_an_address_or_github() {
        let here = folder();
        let spec = here.path().display().to_string();
        for good in [spec.as_str(), "https://mirror.test/k3s/", "http://127.0.0.1:1", "github", "github:k3s-io/k3s"] {
            assert!(crate::open(good, here.path()).is_ok(), "{good}");
        }
        for (bad, because) in [
            ("githb", "there is no such folder"),
            ("github:k3s", "not a repository"),
            ("github:../../x/y", "not a repository"),
            ("https://", "address"),
            ("https://mirror.test/?dir=k3s", "`?`"),
        ] {
            let error = crate::open(bad, here.path()).err().expect("an error").to_string();
            assert!(error.contains(because), "{bad}: {error}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        let error = crate::open("https://me:hunter2@mirror.test/", Path::new("/nowhere")).err().expect("an error");
        assert!(error.to_string().contains("secrets do not belong there"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

mod a_sums_file {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_a_digest_for_each_file() {
        let digest = Digest::of(BINARY);
        let text = format!("{digest}  k3s-airgap-images-arm.tar.zst\r\n\n{digest} *k3s-armhf\n");
        let read = Sums::parse(&text);
        assert_eq!(read.digests.keys().collect::<Vec<_>>(), ["k3s-airgap-images-arm.tar.zst", "k3s-armhf"]);
        assert_eq!(read.unreadable, Vec::<String>::new());
    }

    #[test]
    fn with_two_digests_for_a_file_names_none() {
        let read = Sums::parse(&(sums(&[("k3s", BINARY)]) + &sums(&[("k3s", IMAGES), ("k3s-arm64", BINARY)])));
        assert_eq!(read.digests.keys().collect::<Vec<_>>(), ["k3s-arm64"]);
        assert_eq!(read.unreadable, ["k3s has two different digests"]);
    }

    proptest! {
        #[test]
        fn of_any_contents_does_no_harm(text in ".{0,200}") {
            Sums::parse(&text);
            let _ = crate::layout::read_index(text.as_bytes());
            crate::layout::name_of(&text);
        }
    }
}

mod a_folder {
    use super::*;

    fn mirror() -> TempDir {
        let root = folder();
        write(&root.path().join("v1.36.4+k3s1/k3s"), BINARY);
        write(&root.path().join("v1.36.4+k3s1/k3s-airgap-images-amd64.tar.zst"), IMAGES);
        let both = sums(&[("k3s-airgap-images-amd64.tar.zst", IMAGES), ("k3s", BINARY)]);
        write(&root.path().join("v1.36.4+k3s1/sha256sum-amd64.txt"), both);
        root
    }

    fn open(root: &TempDir) -> Box<dyn Releases> {
        crate::open(&root.path().display().to_string(), Path::new("/nowhere")).expect("a folder")
    }

    #[tokio::test]
    async fn is_listed_by_looking() {
        let root = mirror();
        for other in ["images/web.tar", "manifests/ccm.yaml", "READY", "stable", ".git/HEAD"] {
            write(&root.path().join(other), "");
        }
        let catalog = catalog(&*open(&root)).await;
        assert_eq!(catalog.unreadable, Vec::<String>::new());
        let release = &catalog.releases[&v("v1.36.4+k3s1")];
        assert_eq!(release.binaries, [(Arch::Amd64, Digest::of(BINARY))].into());
        assert_eq!((release.published, release.prerelease), (None, false));
    }

    #[tokio::test]
    async fn says_what_it_could_not_read() {
        let root = mirror();
        write(&root.path().join("v1.36.4+rke2r1/k3s"), BINARY);
        write(&root.path().join("v1.36.3%2Bk3s1/k3s"), BINARY);
        write(&root.path().join("v1.36.2+k3s1/k3s"), BINARY);
        write(&root.path().join("v1.36.2+k3s1/sha256sum-arm64.txt"), sums(&[("k3s-arm64", BINARY)]));
        write(&root.path().join("v1.36.1+k3s1/README"), "");
        write(&root.path().join("v1.36.0+k3s1"), "a file");
        write(&root.path().join("v1.35.9+k3s1/k3s"), BINARY);
        write(&root.path().join("v1.35.9+k3s1/sha256sum-amd64.txt"), "0123  k3s\n");
        let catalog = catalog(&*open(&root)).await;
        assert_eq!(
            catalog.unreadable,
            [
                "v1.35.9+k3s1: k3s is left out: sha256sum-amd64.txt has no digest for it",
                "v1.35.9+k3s1: sha256sum-amd64.txt: line 1 (k3s): `0123` is not a SHA-256 in 64 hexadecimal digits",
                "v1.36.0+k3s1: not a folder",
                "v1.36.1+k3s1: the folder has no binary",
                "v1.36.2+k3s1: k3s is left out: sha256sum-amd64.txt is missing",
                "v1.36.2+k3s1: sha256sum-arm64.txt names k3s-arm64, which is missing",
                "v1.36.3%2Bk3s1: the `+` is written as in an URL; rename the folder to v1.36.3+k3s1",
                "v1.36.4+rke2r1: `v1.36.4+rke2r1` has the build suffix `+rke2r1`, which is not K3s's `+k3sN`: its order \
                 is unknown",
            ]
        );
        let without_binary = ["v1.35.9+k3s1", "v1.36.1+k3s1", "v1.36.2+k3s1"];
        assert!(without_binary.iter().all(|version| catalog.releases[&v(version)].binaries.is_empty()));
    }

    #[tokio::test]
    async fn takes_dates_from_releases_json_if_it_is_there() {
        let root = mirror();
        let index =
            json!([{ "tag": "v1.36.4+k3s1", "published": "2026-08-27T14:03:11Z", "prerelease": true }, { "tag": 5 }]);
        write(&root.path().join("releases.json"), index.to_string());
        let catalog = catalog(&*open(&root)).await;
        let release = &catalog.releases[&v("v1.36.4+k3s1")];
        assert_eq!(release.published, Some("2026-08-27T14:03:11Z".parse().expect("a time")));
        assert!(release.prerelease);
        assert_eq!(catalog.unreadable.len(), 1, "{:?}", catalog.unreadable);
        assert!(catalog.unreadable[0].starts_with("entry 2: unreadable in releases.json"), "{:?}", catalog.unreadable);
    }

    #[tokio::test]
    async fn hands_out_its_files_where_they_are_once_verified() {
        let root = mirror();
        let source = open(&root);
        let artifact = binary(&*source, "v1.36.4+k3s1").await.expect("the binary");
        assert_eq!(artifact.path, root.path().join("v1.36.4+k3s1/k3s"));
        assert_eq!((artifact.digest, artifact.bytes), (Digest::of(BINARY), BINARY.len() as u64));
        let images = source.fetch(&v("v1.36.4+k3s1"), Arch::Amd64, ArtifactKind::AirgapImages).await.expect("images");
        assert_eq!(images.digest, Digest::of(IMAGES));
    }

    #[tokio::test]
    async fn that_changed_hands_out_nothing() {
        let root = mirror();
        let source = open(&root);
        binary(&*source, "v1.36.4+k3s1").await.expect("the binary");
        write(&root.path().join("v1.36.4+k3s1/k3s"), b"half a bin");
        let error = binary(&*source, "v1.36.4+k3s1").await.expect_err("a wrong digest");
        assert!(matches!(error, ReleaseError::Digest { .. }), "{error}");
    }

    #[tokio::test]
    async fn says_what_is_not_there() {
        let root = mirror();
        let source = open(&root);
        let error = binary(&*source, "v1.36.9+k3s1").await.expect_err("no release");
        assert!(matches!(error, ReleaseError::NoSuchRelease { .. }), "{error}");
        let error = source.fetch(&v("v1.36.4+k3s1"), Arch::Arm, ArtifactKind::Binary).await.expect_err("no binary");
        assert!(matches!(&error, ReleaseError::NoAsset { file, .. } if file == "k3s-armhf"), "{error}");
        fs_err::remove_dir_all(root.path()).expect("removed");
        let error = source.catalog().await.expect_err("gone");
        assert!(matches!(error, ReleaseError::NoWay { .. }), "{error}");
    }
}

mod a_mirror {
    use super::*;

    fn index(digest: Digest) -> String {
        json!([{ "tag": "v1.36.4+k3s1", "published": "2026-08-27T14:03:11Z", "digests": { "amd64": digest } }])
            .to_string()
    }

    async fn serving(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Host {
        Host::new(move |request| match request.path.as_str() {
            "/k3s/releases.json" => Answer::ok(index(Digest::of(BINARY))),
            _ => answer(request),
        })
        .await
    }

    fn open(host: &Host, cache: &TempDir, limits: Limits) -> Remote {
        Remote::mirror(&format!("{}/k3s/", host.url), cache.path(), limits).expect("a mirror")
    }

    #[tokio::test]
    async fn lists_and_gives_what_it_has_and_is_asked_once() {
        let host = serving(|request| match request.path.as_str() {
            "/k3s/v1.36.4%2Bk3s1/k3s" => Answer::ok(BINARY),
            _ => Answer::status(404),
        })
        .await;
        let cache = folder();
        let source = open(&host, &cache, quick());
        let catalog = catalog(&source).await;
        let release = &catalog.releases[&v("v1.36.4+k3s1")];
        assert_eq!(release.published, Some("2026-08-27T14:03:11Z".parse().expect("a time")));
        assert_eq!(release.binaries, [(Arch::Amd64, Digest::of(BINARY))].into());

        for _ in 0..2 {
            let artifact = binary(&source, "v1.36.4+k3s1").await.expect("the binary");
            assert_eq!(artifact.path, cache.path().join("v1.36.4+k3s1/k3s"));
            assert_eq!(fs_err::read(&artifact.path).expect("a file"), BINARY);
            assert_eq!(artifact.bytes, BINARY.len() as u64);
            let mode = fs_err::metadata(&artifact.path).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(host.paths(), ["/k3s/releases.json", "/k3s/v1.36.4%2Bk3s1/k3s"]);
    }

    #[tokio::test]
    async fn is_asked_again_for_a_cached_file_that_was_changed() {
        let host = serving(|_| Answer::ok(BINARY)).await;
        let cache = folder();
        let source = open(&host, &cache, quick());
        let path = binary(&source, "v1.36.4+k3s1").await.expect("the binary").path;
        let mut evil = BINARY.to_vec();
        evil[0] ^= 1;
        write(&path, &evil);
        binary(&source, "v1.36.4+k3s1").await.expect("the binary");
        assert_eq!(fs_err::read(&path).expect("a file"), BINARY);
        assert_eq!(host.paths().len(), 3);
    }

    #[tokio::test]
    async fn is_asked_once_for_a_file_that_two_want() {
        let host = serving(|_| Answer::ok(BINARY)).await;
        let cache = folder();
        let source = open(&host, &cache, quick());
        let (a, b) = tokio::join!(binary(&source, "v1.36.4+k3s1"), binary(&source, "v1.36.4+k3s1"));
        assert_eq!(a, b);
        assert_eq!(host.paths().iter().filter(|path| path.ends_with("/k3s")).count(), 1);
    }

    #[tokio::test]
    async fn gives_digests_of_image_archives_in_its_sums_files() {
        let host = serving(|request| match request.path.as_str() {
            "/k3s/v1.36.4%2Bk3s1/sha256sum-amd64.txt" => {
                Answer::ok(sums(&[("k3s-airgap-images-amd64.tar.zst", IMAGES)]))
            }
            "/k3s/v1.36.4%2Bk3s1/k3s-airgap-images-amd64.tar.zst" => Answer::ok(IMAGES),
            _ => Answer::status(404),
        })
        .await;
        let cache = folder();
        let source = open(&host, &cache, quick());
        let images = source.fetch(&v("v1.36.4+k3s1"), Arch::Amd64, ArtifactKind::AirgapImages).await.expect("images");
        assert_eq!(images.digest, Digest::of(IMAGES));
        let error = source.fetch(&v("v1.36.4+k3s1"), Arch::Arm64, ArtifactKind::AirgapImages).await.expect_err("none");
        assert!(matches!(&error, ReleaseError::NoAsset { file, .. } if file == "sha256sum-arm64.txt"), "{error}");
    }

    #[tokio::test]
    async fn without_digests_in_its_list_is_asked_for_the_sums_of_the_newest_patches() {
        let host = Host::new(|request| match request.path.as_str() {
            "/k3s/releases.json" => Answer::ok(
                json!([{ "tag": "v1.36.3+k3s1" }, { "tag": "v1.36.4+k3s1" }, { "tag": "v1.36.5-rc1+k3s1" }])
                    .to_string(),
            ),
            "/k3s/v1.36.4%2Bk3s1/sha256sum-arm64.txt" => Answer::ok(sums(&[("k3s-arm64", BINARY)])),
            _ => Answer::status(404),
        })
        .await;
        let catalog = catalog(&open(&host, &folder(), quick())).await;
        assert_eq!(catalog.releases[&v("v1.36.4+k3s1")].binaries, [(Arch::Arm64, Digest::of(BINARY))].into());
        assert!(catalog.releases[&v("v1.36.3+k3s1")].binaries.is_empty());
        assert_eq!(host.paths().len(), 4, "{:?}", host.paths());
    }

    #[tokio::test]
    async fn hides_no_release_behind_an_entry_that_cannot_be_read() {
        let host = Host::new(|_| {
            let list = json!([
                { "tag": "latest" },
                { "tag": "v1.36.3+k3s1", "published": "yesterday" },
                { "tag": "v1.36.2+k3s1", "digests": { "amd64": "abc", "riscv64": "def" } },
                { "tag": "v1.36.4+k3s1", "digests": { "amd64": Digest::of(BINARY) }, "new": true },
            ]);
            Answer::ok(list.to_string())
        })
        .await;
        let catalog = catalog(&open(&host, &folder(), quick())).await;
        assert_eq!(catalog.releases[&v("v1.36.4+k3s1")].binaries.len(), 1);
        assert_eq!(catalog.unreadable.len(), 3, "{:?}", catalog.unreadable);
        assert!(catalog.unreadable.iter().any(|why| why.starts_with("latest: ")));
        assert!(catalog.unreadable.iter().any(|why| why.starts_with("v1.36.3+k3s1: unreadable")));
        assert!(catalog.unreadable.iter().any(|why| why.starts_with("v1.36.2+k3s1: digest for amd64: `abc`")));
    }

    #[tokio::test]
    async fn that_gives_no_list_is_said_to() {
        for (answer, expected) in [
            (Answer::status(404) as Answer, "does not exist; a mirror lists its releases in this file"),
            (Answer::status(503), "503"),
            (Answer::ok("<html>Welcome to nginx!</html>"), "not a JSON list of releases: expected value at line 1"),
            (Answer::ok(r#"{"tag": "v1.36.4+k3s1"}"#), "not a JSON list"),
        ] {
            let answer = std::sync::Mutex::new(Some(answer));
            let host = Host::new(move |_| answer.lock().expect("it").take().expect("asked once")).await;
            let error = open(&host, &folder(), quick()).catalog().await.expect_err("no list");
            assert!(matches!(&error, ReleaseError::Answered { why, .. } if why.contains(expected)), "{error}");
        }
    }

    #[tokio::test]
    async fn that_nobody_runs_is_not_reached() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port");
        let source = Remote::mirror(&format!("http://{free}"), folder().path(), quick()).expect("a mirror");
        let error = source.catalog().await.expect_err("nobody there");
        assert!(matches!(error, ReleaseError::NoWay { .. }), "{error}");
        assert!(error.to_string().to_lowercase().contains("connection refused"), "{error}");
    }

    #[tokio::test]
    async fn with_an_endless_list_is_given_up() {
        let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
        let host = Host::new(move |_| Answer::Endless(head.clone(), vec![b' '; 1 << 20], Duration::ZERO)).await;
        let error = open(&host, &folder(), quick()).catalog().await.expect_err("endless");
        assert!(error.to_string().contains("larger than 16777216 bytes"), "{error}");
    }

    #[tokio::test]
    async fn that_never_answers_is_given_up() {
        let host = Host::new(|_| Answer::Endless(Vec::new(), Vec::new(), Duration::from_secs(1))).await;
        let limits = Limits { answer: Duration::from_millis(100), ..quick() };
        let error = open(&host, &folder(), limits).catalog().await.expect_err("silence");
        assert!(error.to_string().contains("no whole answer within 0.2 s"), "{error}");
    }

    /// Fetches the binary from a mirror with this fault; in the end nothing may be left in the cache.
    async fn fault(limits: Limits, answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> ReleaseError {
        let host = serving(answer).await;
        let cache = folder();
        let error = binary(&open(&host, &cache, limits), "v1.36.4+k3s1").await.expect_err("the fault");
        assert_eq!(files(cache.path()), Vec::<String>::new(), "after {error}");
        error
    }

    fn head(length: usize) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n").into_bytes()
    }

    #[tokio::test]
    async fn without_the_file_says_so() {
        let error = fault(quick(), |_| Answer::status(404)).await;
        assert!(matches!(&error, ReleaseError::NoAsset { file, .. } if file == "k3s"), "{error}");
        let error = fault(quick(), |_| Answer::status(500)).await;
        assert!(matches!(error, ReleaseError::Answered { .. }), "{error}");
    }

    #[tokio::test]
    async fn that_breaks_off_gives_no_file() {
        let error = fault(quick(), |_| Answer::Bytes([head(BINARY.len()), BINARY[..10].to_vec()].concat())).await;
        assert!(
            matches!(error, ReleaseError::Truncated { got: 10, expected, .. } if expected == BINARY.len() as u64),
            "{error}"
        );
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nnot \r\n".to_vec();
        let error = fault(quick(), move |_| Answer::Bytes(chunked.clone())).await;
        assert!(error.to_string().contains("broke off after 4 bytes"), "{error}");
        // Without any length a shorter file looks whole. The digest knows better.
        let short = [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", &BINARY[..10]].concat();
        let error = fault(quick(), move |_| Answer::Bytes(short.clone())).await;
        assert!(matches!(error, ReleaseError::Digest { .. }), "{error}");
    }

    #[tokio::test]
    async fn with_another_file_gives_none() {
        let error = fault(quick(), |_| Answer::ok("<html>please log in</html>")).await;
        let ReleaseError::Digest { expected, found, .. } = error else { unreachable!("{error}") };
        assert_eq!(expected, Digest::of(BINARY).to_string());
        assert_eq!(found, Digest::of(b"<html>please log in</html>").to_string());
    }

    #[tokio::test]
    async fn with_a_huge_file_gives_none() {
        let error = fault(quick(), |_| Answer::Bytes(head(3 << 20))).await;
        assert!(error.to_string().contains("3145728 bytes are more than any K3s file"), "{error}");
        let endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
        let error = fault(quick(), move |_| Answer::Endless(endless.clone(), vec![0; 1 << 16], Duration::ZERO)).await;
        assert!(error.to_string().contains("does not end after 1048576 bytes"), "{error}");
    }

    #[tokio::test]
    async fn that_stalls_or_drips_is_given_up() {
        let never = Duration::from_secs(600);
        let error = fault(quick(), move |_| Answer::Endless(head(1 << 19), vec![0; 100], never)).await;
        assert!(error.to_string().contains("k3s stalled: 0 bytes in 0.3 s"), "{error}");
        let drip = Duration::from_millis(20);
        let error = fault(quick(), move |_| Answer::Endless(head(1 << 19), vec![0; 1], drip)).await;
        assert!(error.to_string().contains("k3s stalled"), "{error}");
    }

    #[tokio::test]
    async fn that_is_slow_but_steady_is_waited_for() {
        // Three windows long, each with more than the least progress.
        let whole = vec![7; 40 * 256];
        let digest = Digest::of(&whole);
        let host = Host::new(move |request| match request.path.as_str() {
            "/k3s/releases.json" => Answer::ok(index(digest)),
            _ => Answer::Endless(head(40 * 256), vec![7; 256], Duration::from_millis(25)),
        })
        .await;
        let limits = Limits { least: 256, ..quick() };
        binary(&open(&host, &folder(), limits), "v1.36.4+k3s1").await.expect("the binary");
    }

    #[tokio::test]
    async fn may_send_us_elsewhere_but_not_around_in_circles() {
        let host = serving(|request| match request.path.as_str() {
            "/elsewhere" => Answer::ok(BINARY),
            _ => Answer::redirect("/elsewhere"),
        })
        .await;
        binary(&open(&host, &folder(), quick()), "v1.36.4+k3s1").await.expect("the binary");

        let host = serving(|request| Answer::redirect(request.path.clone())).await;
        let error = binary(&open(&host, &folder(), quick()), "v1.36.4+k3s1").await.expect_err("a circle");
        assert!(error.to_string().contains("more than 5 redirects"), "{error}");
        assert_eq!(host.paths().len(), 1 + 1 + 5, "the list, the file, five redirects");
    }

    #[tokio::test]
    async fn leaves_no_partial_files_of_a_process_that_died() {
        let host = serving(|_| Answer::ok(BINARY)).await;
        let cache = folder();
        let (old, young) =
            (cache.path().join("v1.36.4+k3s1/.k3s.aB1.part"), cache.path().join("v1.36.4+k3s1/.k3s.cD2.part"));
        write(&old, "half");
        write(&young, "half");
        let whole = cache.path().join("v1.36.4+k3s1/k3s-arm64");
        write(&whole, "another file");
        let two_hours_ago = std::time::SystemTime::now() - Duration::from_hours(2);
        for path in [&old, &whole] {
            let file = std::fs::File::options().write(true).open(path);
            file.and_then(|file| file.set_modified(two_hours_ago)).expect("made old");
        }
        binary(&open(&host, &cache, quick()), "v1.36.4+k3s1").await.expect("the binary");
        assert_eq!(files(cache.path()), ["v1.36.4+k3s1/.k3s.cD2.part", "v1.36.4+k3s1/k3s", "v1.36.4+k3s1/k3s-arm64"]);
    }

    #[tokio::test]
    async fn is_of_no_use_to_a_cache_that_cannot_be_written() {
        let host = serving(|_| Answer::ok(BINARY)).await;
        let cache = folder();
        write(&cache.path().join("v1.36.4+k3s1"), "a file where a folder should be");
        let error = binary(&open(&host, &cache, quick()), "v1.36.4+k3s1").await.expect_err("no folder");
        assert!(matches!(error, ReleaseError::Here { .. }), "{error}");
    }

    #[test]
    fn and_a_full_disk_is_called_one() {
        let full = std::io::Error::from_raw_os_error(28);
        let error = crate::cache::here(Path::new("/cache/v1.36.4+k3s1/k3s"), &full).to_string();
        assert!(error.starts_with("/cache/v1.36.4+k3s1/k3s: the disk of this machine is full"), "{error}");
    }
}

/// In the shapes of GitHub's documentation; see `github.rs` for what was never seen live.
mod github {
    use super::*;

    const TOKEN: &str = "ghp_secret";

    fn release(tag: &str, assets: &[(&str, Option<&[u8]>)]) -> serde_json::Value {
        let assets: Vec<_> = assets
            .iter()
            .map(|(name, contents)| {
                let digest = contents.map(|contents| format!("sha256:{}", Digest::of(contents)));
                json!({ "name": name, "state": "uploaded", "digest": digest, "size": 5, "download_count": 7 })
            })
            .collect();
        json!({
            "tag_name": tag, "draft": false, "prerelease": tag.contains("-rc"), "published_at": "2026-08-27T14:03:11Z",
            "created_at": "2026-08-20T01:00:00Z", "body": "<!-- notes -->", "assets": assets,
        })
    }

    fn page_one() -> String {
        json!([
            release("v1.36.5-rc1+k3s1", &[("k3s", Some(BINARY))]),
            release("v1.36.4+k3s1", &[
                ("k3s", Some(BINARY)),
                ("k3s-arm64", None),
                ("k3s-airgap-images-amd64.tar.zst", Some(IMAGES)),
                ("k3s-images.txt", None),
            ]),
            { "tag_name": "v1.36.9+k3s1", "draft": true, "published_at": null },
        ])
        .to_string()
    }

    fn page_two() -> String {
        json!([
            release("v1.24.17+k3s1", &[("k3s", None)]),
            release("v1.24.16+k3s1", &[("k3s", None)]),
            release("v0.9.1", &[])
        ])
        .to_string()
    }

    /// Serves two pages, the sums file of the old release, and the files.
    fn normal(request: &Request) -> Answer {
        let etag = |etag: &str, link: &str, body: String| {
            if request.header("if-none-match") == Some(etag) {
                return Answer::status(304);
            }
            Answer::Whole(200, vec![("etag", etag.to_owned()), ("link", link.to_owned())], body.into_bytes())
        };
        match request.path.as_str() {
            "/repos/k3s-io/k3s/releases?per_page=100&page=1" => {
                let next = r#"<https://api.github.com/repositories/1/releases?page=2>; rel="next", <x>; rel="last""#;
                etag(r#"w/"one""#, next, page_one())
            }
            "/repos/k3s-io/k3s/releases?per_page=100&page=2" => etag(r#"w/"two""#, r#"<x>; rel="prev""#, page_two()),
            "/download/v1.24.17%2Bk3s1/sha256sum-amd64.txt" => Answer::ok(sums(&[("k3s", IMAGES)])),
            "/download/v1.36.4%2Bk3s1/sha256sum-arm64.txt" => Answer::ok(sums(&[("k3s-arm64", BINARY)])),
            "/download/v1.36.4%2Bk3s1/k3s" => Answer::redirect("/release-assets/1?sig=abc"),
            "/release-assets/1?sig=abc" => Answer::ok(BINARY),
            _ => Answer::status(404),
        }
    }

    fn open(host: &Host, cache: &TempDir, token: Option<&str>) -> Remote {
        let github = GitHub::new("k3s-io/k3s", &host.url, token).expect("a repository");
        Remote::github(github, &format!("{}/download", host.url), cache.path(), quick()).expect("a source")
    }

    /// Makes the kept pages look this old.
    fn age(cache: &TempDir, hours: i64) {
        let path = cache.path().join("github/k3s-io+k3s.json");
        let mut kept: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).expect("kept")).expect("json");
        let then = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours);
        for page in kept["pages"].as_array_mut().expect("pages") {
            page["asked"] = json!(then);
        }
        fs_err::write(&path, kept.to_string()).expect("written");
    }

    fn api_requests(host: &Host) -> Vec<Request> {
        host.asked().into_iter().filter(|request| request.path.starts_with("/repos/")).collect()
    }

    #[tokio::test]
    async fn is_listed_page_by_page() {
        let host = Host::new(normal).await;
        let catalog = catalog(&open(&host, &folder(), None)).await;
        assert_eq!(catalog.source, "github.com/k3s-io/k3s");
        let versions: Vec<_> = catalog.releases.keys().map(ToString::to_string).collect();
        assert_eq!(versions, ["v1.24.16+k3s1", "v1.24.17+k3s1", "v1.36.4+k3s1", "v1.36.5-rc1+k3s1"]);
        assert!(catalog.releases[&v("v1.36.5-rc1+k3s1")].prerelease);
        let published = catalog.releases[&v("v1.36.4+k3s1")].published;
        assert_eq!(published, Some("2026-08-27T14:03:11Z".parse().expect("a time")));
        assert_eq!(catalog.unreadable, ["not K3s versions that can be ordered: v0.9.1"]);
    }

    #[tokio::test]
    async fn digests_come_from_the_list_and_else_from_the_sums_of_the_newest_patches() {
        let host = Host::new(normal).await;
        let cache = folder();
        let source = open(&host, &cache, None);
        let first = catalog(&source).await;
        let of = |version| first.releases[&v(version)].binaries.clone();
        assert_eq!(of("v1.36.4+k3s1"), [(Arch::Amd64, Digest::of(BINARY)), (Arch::Arm64, Digest::of(BINARY))].into());
        assert_eq!(of("v1.24.17+k3s1"), [(Arch::Amd64, Digest::of(IMAGES))].into());
        assert_eq!(of("v1.24.16+k3s1"), [].into(), "not the newest patch of its minor");

        let asked = host.paths().len();
        let again = catalog(&source).await;
        assert_eq!(again.releases, first.releases);
        assert_eq!(host.paths().len(), asked, "within a minute nothing is asked again, sums files included");
    }

    #[tokio::test]
    async fn is_asked_only_for_what_changed() {
        let host = Host::new(normal).await;
        let cache = folder();
        let first = catalog(&open(&host, &cache, None)).await;
        age(&cache, 1);
        let again = catalog(&open(&host, &cache, None)).await;
        assert_eq!(again.releases, first.releases);
        assert!(again.fetched < first.fetched, "as old as its oldest page");
        age(&cache, 7);
        let later = catalog(&open(&host, &cache, None)).await;
        assert_eq!(later.releases, first.releases);
        assert!(later.fetched > first.fetched);
        let asked: Vec<_> = api_requests(&host)
            .iter()
            .map(|request| (request.path.ends_with('2'), request.header("if-none-match").map(str::to_owned)))
            .collect();
        let (one, two) = (Some(r#"w/"one""#.to_owned()), Some(r#"w/"two""#.to_owned()));
        assert_eq!(asked, [(false, None), (true, None), (false, one.clone()), (false, one), (true, two)]);
    }

    #[tokio::test]
    async fn that_changed_a_page_is_not_asked_again_for_sums_that_are_known() {
        let host = Host::new(|request| match normal(request) {
            // Never unchanged: every page has a new ETag and is sent whole.
            Answer::Whole(304, ..) => unreachable!("no ETag was given out"),
            Answer::Whole(status, headers, body) => {
                Answer::Whole(status, headers.into_iter().filter(|(name, _)| *name != "etag").collect(), body)
            }
            other => other,
        })
        .await;
        let cache = folder();
        let first = catalog(&open(&host, &cache, None)).await;
        age(&cache, 7);
        let again = catalog(&open(&host, &cache, None)).await;
        assert_eq!(again.releases, first.releases);
        assert_eq!(api_requests(&host).len(), 4, "both pages, twice");
        assert_eq!(host.paths().iter().filter(|path| path.contains("/sha256sum-")).count(), 2);
    }

    #[tokio::test]
    async fn that_withdrew_a_release_is_believed() {
        let withdrawn = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&withdrawn);
        let host = Host::new(move |request| {
            if !flag.load(Ordering::SeqCst) || !request.path.ends_with("&page=1") {
                return normal(request);
            }
            let page = page_one().replace(r#""prerelease":false"#, r#""prerelease":true"#);
            let link = r#"<x>; rel="next""#.to_owned();
            Answer::Whole(200, vec![("etag", r#"w/"three""#.to_owned()), ("link", link)], page.into_bytes())
        })
        .await;
        let cache = folder();
        let source = open(&host, &cache, None);
        assert!(!catalog(&source).await.releases[&v("v1.36.4+k3s1")].prerelease);
        withdrawn.store(true, Ordering::SeqCst);
        age(&cache, 1);
        assert!(catalog(&source).await.releases[&v("v1.36.4+k3s1")].prerelease);
        let second = &api_requests(&host)[3];
        assert!(second.path.ends_with("&page=2"), "pages shift when the first one changes: {}", second.path);
    }

    #[tokio::test]
    async fn gets_the_token_and_nobody_else_does() {
        let host = Host::new(normal).await;
        let source = open(&host, &folder(), Some(TOKEN));
        binary(&source, "v1.36.4+k3s1").await.expect("the binary");
        for request in host.asked() {
            let expected = request.path.starts_with("/repos/").then_some("bearer ghp_secret");
            assert_eq!(request.header("authorization"), expected, "{}", request.path);
        }
    }

    #[tokio::test]
    async fn files_are_fetched_and_verified() {
        let host = Host::new(normal).await;
        let source = open(&host, &folder(), None);
        let artifact = binary(&source, "v1.36.4+k3s1").await.expect("the binary");
        assert_eq!(artifact.digest, Digest::of(BINARY));
        let error = source.fetch(&v("v1.36.4+k3s1"), Arch::Arm, ArtifactKind::Binary).await.expect_err("no such asset");
        assert!(matches!(&error, ReleaseError::NoAsset { file, .. } if file == "k3s-armhf"), "{error}");
        let error = binary(&source, "v1.36.9+k3s1").await.expect_err("a draft");
        assert!(matches!(error, ReleaseError::NoSuchRelease { .. }), "{error}");
    }

    fn spent(status: u16, name: &'static str, value: String) -> impl Fn(&Request) -> Answer {
        move |_| {
            let headers = vec![("x-ratelimit-remaining", "0".to_owned()), (name, value.clone())];
            Answer::Whole(status, headers, br#"{"message":"API rate limit exceeded for 192.0.2.1."}"#.to_vec())
        }
    }

    #[tokio::test]
    async fn with_its_rate_limit_used_up_says_until_when() {
        let reset = jiff::Timestamp::now().as_second() + 600;
        let host = Host::new(spent(403, "x-ratelimit-reset", reset.to_string())).await;
        let error = open(&host, &folder(), None).catalog().await.expect_err("refused").to_string();
        let until = jiff::Timestamp::from_second(reset).expect("a time").strftime("%H:%M UTC");
        assert!(error.contains(&format!("rate limit is used up until {until} (in 10 min)")), "{error}");
        assert!(error.contains("a token in GITHUB_TOKEN raises the limit"), "{error}");

        let host = Host::new(spent(429, "retry-after", "90".to_owned())).await;
        let error = open(&host, &folder(), Some(TOKEN)).catalog().await.expect_err("refused").to_string();
        assert!(error.contains("(in 2 min)") && !error.contains("GITHUB_TOKEN"), "{error}");
    }

    #[tokio::test]
    async fn that_refuses_otherwise_is_quoted() {
        for (status, expected) in [
            (401, "token in GITHUB_TOKEN is refused"),
            (404, "there is no repository k3s-io/k3s"),
            (403, "GitHub refuses (403 Forbidden): Resource protected"),
            (500, "500"),
        ] {
            let host =
                Host::new(move |_| Answer::Whole(status, vec![], br#"{"message":"Resource protected"}"#.to_vec()))
                    .await;
            let error = open(&host, &folder(), Some(TOKEN)).catalog().await.expect_err("refused");
            assert!(matches!(&error, ReleaseError::Answered { why, .. } if why.contains(expected)), "{error}");
            assert!(!error.to_string().contains(TOKEN));
        }
        let host = Host::new(|_| Answer::ok("<html>captive portal</html>")).await;
        let error = open(&host, &folder(), None).catalog().await.expect_err("not a list");
        assert!(error.to_string().contains("not a list of releases"), "{error}");
    }

    #[tokio::test]
    async fn that_does_not_answer_is_stood_in_for_by_a_list_of_today() {
        let away = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&away);
        let host =
            Host::new(move |request| if flag.load(Ordering::SeqCst) { Answer::status(502) } else { normal(request) })
                .await;
        let cache = folder();
        let first = catalog(&open(&host, &cache, None)).await;
        away.store(true, Ordering::SeqCst);
        age(&cache, 7);
        let stand_in = catalog(&open(&host, &cache, None)).await;
        assert_eq!(stand_in.releases, first.releases);
        assert!(stand_in.unreadable[0].contains("this list is 420 min old"), "{:?}", stand_in.unreadable);
        age(&cache, 25);
        let error = open(&host, &cache, None).catalog().await.expect_err("too old");
        assert!(error.to_string().contains("502"), "{error}");
    }

    #[tokio::test]
    async fn is_asked_anew_if_what_was_kept_cannot_be_read() {
        let host = Host::new(normal).await;
        let cache = folder();
        write(&cache.path().join("github/k3s-io+k3s.json"), "{\"schema\":1");
        assert_eq!(catalog(&open(&host, &cache, None)).await.releases.len(), 4);
    }
}
