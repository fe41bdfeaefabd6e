//! The actor that writes outcomes down, many at a time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use horos_store::{
    rusqlite::{self, Connection},
    writer::WriteError,
};
use horos_supervision::Vitals;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    File, LATEST,
    entry::Record,
    table::{self, Span},
    unix_ms,
};

/// How long records gather for one transaction: half of what they have, the other half is the disk's.
const GATHER: Duration = LATEST.checked_div(2).expect("two is not zero");
/// Most records of one transaction: some 20 ms of work.
const BATCH: usize = 4_096;
/// Longest a transaction may take before it is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// A transaction that failed is tried again after the first, and then after twice as long each time up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// What is too old is looked for this often when nothing comes.
const PRUNE: Duration = Duration::from_secs(3_600);

type Failed = WriteError<rusqlite::Error>;

/// What the scribe works on. It outlives one that dies.
pub(super) struct Desk {
    intake: mpsc::Receiver<Record>,
    /// Taken from the queue, for the next transaction.
    gathered: Vec<Record>,
    /// In a transaction that is not known to have succeeded. The rows after `span` are theirs, and nobody else's.
    sealed: Option<Arc<Vec<Record>>>,
    /// To be told when it has.
    waiting: Vec<oneshot::Sender<()>>,
    /// The rows that there are, once somebody has looked.
    span: Option<Span>,
}

impl Desk {
    pub(super) fn new(intake: mpsc::Receiver<Record>) -> Self {
        Self { intake, gathered: Vec::new(), sealed: None, waiting: Vec::new(), span: None }
    }
}

/// Runs until it is aborted.
pub(super) async fn write(file: Arc<File>, vitals: Arc<Vitals>) {
    let mut desk = file.desk.lock().await;
    let mut pause = AGAIN.0;
    loop {
        match work(&file, &mut desk).await {
            Ok(()) => {
                vitals.progressed(Instant::now());
                pause = AGAIN.0;
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "outcomes of tools cannot be written down; calls wait");
                sleep(pause).await;
                pause = (pause * 2).min(AGAIN.1);
            }
        }
    }
}

async fn work(file: &File, desk: &mut Desk) -> Result<(), Failed> {
    let span = match desk.span {
        Some(span) => span,
        // By itself: once rows have been given numbers these must not depend on whether they are there already.
        None => *desk.span.insert(file.writer.transaction(Instant::now() + PATIENCE, table::span).await?),
    };
    let batch = match &desk.sealed {
        Some(sealed) => sealed.clone(),
        None => {
            gather(file, desk).await;
            desk.sealed.insert(Arc::new(std::mem::take(&mut desk.gathered))).clone()
        }
    };
    let (now, count) = (unix_ms(), batch.len() as u64);
    let next = span.next.saturating_add(i64::try_from(batch.len()).unwrap_or(i64::MAX));
    let append = move |connection: &Connection| {
        table::append(connection, span, &batch)?;
        table::prune(connection, Span { next, ..span }, now)
    };
    let oldest = file.writer.transaction(Instant::now() + PATIENCE, append).await?;
    desk.span = Some(Span { oldest, next });
    desk.sealed = None;
    file.written.send_modify(|written| *written += count);
    for told in desk.waiting.drain(..) {
        // Whoever waited may have gone.
        let _ = told.send(());
    }
    Ok(())
}

/// Waits for records, and for more of them; ends without any when it is time to throw out what is too old.
async fn gather(file: &File, desk: &mut Desk) {
    if desk.gathered.is_empty() {
        let Ok(Some(first)) = timeout(PRUNE, desk.intake.recv()).await else { return };
        // Put down before anything else is awaited: the scribe may end at any await.
        desk.put(first);
        if desk.waiting.is_empty() {
            tokio::select! {
                () = file.urgent.notified() => {}
                () = sleep(GATHER) => {}
            }
        }
    }
    while desk.gathered.len() < BATCH
        && let Ok(record) = desk.intake.try_recv()
    {
        desk.put(record);
    }
}

impl Desk {
    fn put(&mut self, mut record: Record) {
        self.waiting.extend(record.told.take());
        self.gathered.push(record);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source()).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
