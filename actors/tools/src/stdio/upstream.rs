//! The node's end of the bridge: one session on a connection's first stream.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{DialFailed, Options, QUEUE, Task, with_key};
use crate::{
    Credential,
    quic::{self, Close, Lines, MAGIC, MAX_MESSAGE, SendError, Turns},
};

/// What was heard of the node.
#[derive(Debug)]
pub(super) enum Heard {
    Line(Bytes),
    /// Nothing more comes.
    Lost(SendError),
}

/// A session with a node. Its connection is closed with it.
pub(super) struct Upstream {
    connection: Connection,
    lines: mpsc::Receiver<Bytes>,
    /// None when nothing more is said.
    out: Option<mpsc::Sender<Bytes>>,
    /// To be shown in the first line.
    credential: Option<Credential>,
    _tasks: (Task<()>, Task<()>),
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.connection.close(Close::Done.code(), b"client closing");
    }
}

impl Upstream {
    pub(super) async fn open(connection: Connection, options: &Options) -> Result<Self, DialFailed> {
        let (mut send, receive) = connection.open_bi().await?;
        send.write_all(&MAGIC).await?;
        let (heard, lines) = mpsc::channel(QUEUE);
        let (out, outgoing) = mpsc::channel(QUEUE);
        let reading = Task(tokio::spawn(read(receive, heard, options.stalled)));
        let writing = Task(tokio::spawn(write(send, outgoing, options.stalled)));
        Ok(Self { connection, lines, out: Some(out), credential: options.credential.clone(), _tasks: (reading, writing) })
    }

    /// The next line. Whoever has no session waits.
    ///
    /// # Cancel safety
    /// No line is lost.
    pub(super) async fn heard(upstream: &mut Option<Self>) -> Heard {
        let Some(upstream) = upstream else { return std::future::pending().await };
        match upstream.lines.recv().await {
            Some(line) => Heard::Line(line),
            None => Heard::Lost(upstream.ended().await),
        }
    }

    /// Why it has ended.
    async fn ended(&self) -> SendError {
        // A node that ends the stream closes the connection next, and says why.
        const SOON: std::time::Duration = std::time::Duration::from_secs(1);
        match timeout(SOON, self.connection.closed()).await {
            Ok(reason) => SendError::from(&reason),
            Err(_) => SendError::Ended("the node ended the stream".into()),
        }
    }

    /// Waits for the answer to what was said, and keeps it from everybody.
    pub(super) async fn swallow(&mut self) -> Result<(), DialFailed> {
        loop {
            let Some(line) = self.lines.recv().await else { return Err(self.ended().await.into()) };
            let envelope = quic::message::Envelope::read(&line);
            match envelope.map(|envelope| envelope.kind) {
                Ok(quic::message::Kind::Answer { result: Ok(_), .. }) => return Ok(()),
                Ok(quic::message::Kind::Answer { result: Err(_), .. }) => return Err("the node did not open the session again".into()),
                _ => {}
            }
        }
    }

    /// Says a line; the first one shows the key.
    pub(super) async fn say(&mut self, line: Bytes) {
        let line = match self.credential.take() {
            Some(credential) => with_key(&line, &credential).map_or(line, Bytes::from),
            None => line,
        };
        if let Some(out) = &self.out {
            // It fails when the connection is lost, which is heard.
            let _ = out.send(line).await;
        }
    }

    /// Says nothing more.
    pub(super) fn finish(&mut self) {
        self.out = None;
    }
}

async fn read(receive: RecvStream, heard: mpsc::Sender<Bytes>, stalled: std::time::Duration) {
    let mut lines = Lines::new(receive, stalled);
    let turns = Arc::new(Semaphore::new(1));
    lines.allow(MAX_MESSAGE, Turns { session: turns.clone(), all: Arc::new(Semaphore::new(1)), patience: stalled });
    while let Ok(Some(line)) = lines.next().await {
        if heard.send(line).await.is_err() {
            return;
        }
    }
}

async fn write(mut send: SendStream, mut lines: mpsc::Receiver<Bytes>, stalled: std::time::Duration) {
    let mut batch = Vec::new();
    while lines.recv_many(&mut batch, QUEUE).await > 0 {
        let mut chunks: Vec<Bytes> = batch.drain(..).flat_map(|line| [line, Bytes::from_static(b"\n")]).collect();
        if quic::write(&mut send, &mut chunks, stalled).await.is_err() {
            return;
        }
    }
    // It fails for a stream that the node has stopped.
    let _ = send.finish();
    // Dropped, the stream would be the same; what was written is delivered either way as long as the connection lives.
}
