//! What a process says: its last lines, kept in a ring that a talkative process cannot grow.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Lines kept; older ones are forgotten.
const LINES: usize = 4096;
/// Bytes kept of one line; the rest of it is cut.
const LINE_BYTES: u64 = 16 * 1024;

/// Which of the two streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Data.
    Stdout,
    /// Talk: logs and errors.
    Stderr,
}

/// One line without its end.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) stream: Stream,
    pub(crate) text: String,
}

#[derive(Debug)]
struct Ring {
    lines: VecDeque<Line>,
    /// Lines ever read; the number of the next one.
    read: u64,
}

/// The ring and a signal of its growth. Reader threads, not tasks: a test that blocks its runtime
/// must not fill the pipe and thereby stop the process it watches.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    ring: Arc<Mutex<Ring>>,
    progress: Arc<watch::Sender<Progress>>,
}

/// How far reading has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) read: u64,
    pub(crate) closed: u8,
}

impl Output {
    pub(crate) fn new() -> Self {
        let ring = Ring { lines: VecDeque::with_capacity(64), read: 0 };
        Self { ring: Arc::new(Mutex::new(ring)), progress: Arc::new(watch::Sender::new(Progress::default())) }
    }

    /// Reads `pipe` to its end on a thread of its own.
    pub(crate) fn follow(&self, stream: Stream, pipe: impl Read + Send + 'static) -> std::io::Result<()> {
        let output = self.clone();
        thread::Builder::new().name("output".into()).spawn(move || {
            let mut pipe = BufReader::new(pipe);
            while let Ok(Some(text)) = read_line(&mut pipe) {
                output.push(Line { stream, text });
            }
            output.progress.send_modify(|progress| progress.closed += 1);
        })?;
        Ok(())
    }

    fn push(&self, line: Line) {
        let mut ring = self.ring.lock();
        if ring.lines.len() == LINES {
            ring.lines.pop_front();
        }
        ring.lines.push_back(line);
        ring.read += 1;
        let read = ring.read;
        drop(ring);
        self.progress.send_modify(|progress| progress.read = progress.read.max(read));
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The number of the next line: lines before it were there already.
    pub(crate) fn mark(&self) -> u64 {
        self.ring.lock().read
    }

    /// Kept lines from number `since` on.
    pub(crate) fn since(&self, since: u64) -> Vec<Line> {
        let ring = self.ring.lock();
        let first = ring.read - ring.lines.len() as u64;
        ring.lines.iter().skip(usize::try_from(since.saturating_sub(first)).unwrap_or(usize::MAX)).cloned().collect()
    }

    /// The last `count` lines, for a failure's message.
    pub(crate) fn tail(&self, count: usize) -> String {
        let lines = self.since(0);
        let shown = &lines[lines.len().saturating_sub(count)..];
        shown.iter().map(|line| format!("  | {}\n", line.text)).collect()
    }
}

/// The next line, at most [`LINE_BYTES`] of it; `None` at the end.
fn read_line(pipe: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if pipe.by_ref().take(LINE_BYTES).read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    if bytes.pop_if(|last| *last == b'\n').is_none() {
        pipe.skip_until(b'\n')?;
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
