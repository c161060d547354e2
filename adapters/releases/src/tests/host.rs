//! A host on loopback that answers as it is told, down to the bytes: most faults are ones a proper server does not make.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub(super) struct Host {
    pub(super) url: String,
    asked: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    /// With the query, as it was sent.
    pub(super) path: String,
    /// In lower case.
    head: String,
}

pub(super) enum Answer {
    Whole(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// These bytes, then the connection is closed.
    Bytes(Vec<u8>),
    /// The first bytes, then the others again and again with a pause before each.
    Endless(Vec<u8>, Vec<u8>, Duration),
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Answer {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::Whole(200, Vec::new(), body.into())
    }

    pub(super) fn status(status: u16) -> Self {
        Self::Whole(status, Vec::new(), Vec::new())
    }

    pub(super) fn redirect(to: impl Into<String>) -> Self {
        Self::Whole(302, vec![("location", to.into())], Vec::new())
    }
}

impl Host {
    pub(super) async fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let list = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (list, answer) = (Arc::clone(&list), Arc::clone(&answer));
                tokio::spawn(async move { serve(stream, &list, &*answer).await });
            }
        });
        Self { url, asked, task }
    }

    pub(super) fn asked(&self) -> Vec<Request> {
        self.asked.lock().expect("the list").clone()
    }

    pub(super) fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|request| request.path).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, list: &Mutex<Vec<Request>>, answer: &(impl Fn(&Request) -> Answer + ?Sized)) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let request = Request { path, head: head.to_lowercase().replace("\r\n", "\n") };
    list.lock().expect("the list").push(request.clone());
    // The client may hang up at any time; that is its affair.
    match answer(&request) {
        Answer::Whole(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                head += &format!("{name}: {value}\r\n");
            }
            let _ = stream.write_all(format!("{head}\r\n").as_bytes()).await;
            let _ = stream.write_all(&body).await;
        }
        Answer::Bytes(bytes) => drop(stream.write_all(&bytes).await),
        Answer::Endless(first, again, pause) => {
            if stream.write_all(&first).await.is_ok() {
                loop {
                    tokio::time::sleep(pause).await;
                    if stream.write_all(&again).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
    let _ = stream.shutdown().await;
}
