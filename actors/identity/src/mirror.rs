//! Keeps this node's tables equal to the owner's, and tells the owner what was refused here.
//!
//! Runs on every node, started by `nodes`. Every 250 ms it asks for what has changed, so that what is revoked is refused
//! everywhere within a second; and sooner, within bounds, when somebody shows what is not known here ([`crate::news`]). While the owner is away the last replica serves and a condition says for how long. On the
//! owner itself the tables are the very ones, and only what was remembered of them has to be forgotten.
//!
//! A change that cannot be written here, the disk being full, holds from memory until it can.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_store::{readers::Readers, writer::Writer};
use horos_supervision::{ChildSpec, Context, Ref, worker};
use horos_wire::{
    CallError, NodeName,
    protocol::keys::{Changes, Keys, NAME, Page},
};
use rusqlite::Connection;

use crate::{
    log,
    news::SPACING,
    replica::{self, Standing},
    verifier::Verifier,
};

/// Time between two questions: four of them fit into the second within which a revocation holds.
const POLL: Duration = Duration::from_millis(250);
/// What an answer may take.
const ASK: Duration = Duration::from_secs(1);
/// What a page may take to be written or read here.
const DISK: Duration = Duration::from_secs(2);
/// Time between two reports, if there is anything to report.
const TELL: Duration = Duration::from_secs(1);
/// Without an answer for so long, the node says so. Twelve questions: a restart of the owner passes unnoticed.
const OUT_OF_TOUCH: Duration = Duration::from_secs(3);
/// Pages held in memory while they cannot be written: 10,000 changes, 4 MB. With more, every credential is refused that is
/// not remembered.
const UNSAVED: usize = 20;

/// Where the changes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// This node owns the tables.
    Own(Readers),
    /// Another does; these are its replica.
    Owner {
        /// Which.
        node: NodeName,
        /// Writes the replica.
        writer: Writer,
        /// Reads how far it has come.
        readers: Readers,
    },
}

/// Told whenever it changes what is wrong: none when nothing is.
pub type Conditions = Arc<dyn Fn(Option<&str>) + Send + Sync>;

/// Keeps a node's tables equal to the owner's, and tells the owner what was refused.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

struct Inner {
    context: Context,
    source: Source,
    verifier: Verifier,
    conditions: Conditions,
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mirror({:?})", self.0.source)
    }
}

impl Mirror {
    /// A mirror that calls others from `context` and keeps `verifier` up to date.
    pub fn new(context: Context, source: Source, verifier: Verifier, conditions: Conditions) -> Self {
        Self(Arc::new(Inner { context, source, verifier, conditions }))
    }

    /// The mirror as a supervisor's child, `keys-mirror`. It may end at any await: a page is taken in one transaction together
    /// with how far it leads.
    pub fn child(&self) -> ChildSpec {
        let inner = self.0.clone();
        worker("keys-mirror", move |vitals| {
            let inner = inner.clone();
            async move {
                let news = inner.verifier.news().clone();
                let mut run = Run::new(inner);
                let mut ticks = tokio::time::interval(POLL);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                let mut sooner = tokio::time::Instant::now();
                loop {
                    let wished = async {
                        tokio::time::sleep_until(sooner).await;
                        news.wished().await;
                    };
                    tokio::select! {
                        _ = ticks.tick() => {}
                        () = wished => ticks.reset(),
                    }
                    sooner = tokio::time::Instant::now() + SPACING;
                    vitals.progressed(Instant::now());
                    news.begin();
                    let reached = run.turn().await;
                    news.end(reached);
                    run.tell().await;
                }
            }
        })
    }
}

/// Why there is no page, or it was not taken.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("not in touch with {0} for {1} s")]
    OutOfTouch(NodeName, u64),
    #[error("the tables cannot be read: {0}")]
    Read(String),
    #[error("the changes cannot be written, and hold from memory alone: {0}")]
    Write(String),
}

/// What the verifier was given to hold from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    /// What is unsaved here.
    Ours,
    /// Perhaps what a life before this one could not write: it holds until the tables are known to have all that the owner
    /// knows, for it would hide what they say of it since.
    Unknown,
}

impl Fault {
    /// What anybody may be told: no path, no name, nothing of what is behind.
    fn public(&self) -> String {
        match self {
            Self::OutOfTouch(_, seconds) => format!("not in touch with the owner for {seconds} s"),
            Self::Read(_) => "the tables cannot be read".to_owned(),
            Self::Write(_) => "the changes cannot be written, and hold from memory alone".to_owned(),
        }
    }
}

/// One life of the loop.
struct Run {
    inner: Arc<Inner>,
    owner: NodeName,
    there: Ref<Keys>,
    /// What is on disk; none until it was read.
    standing: Option<Standing>,
    /// Pages taken and not on disk.
    unsaved: Vec<Page>,
    held: Held,
    in_touch: Instant,
    /// Whether the owner's last answer was all that it knew.
    reached: bool,
    told: Instant,
    /// What was said last; nothing yet in this life, which does not know what the one before it said.
    said: Option<Option<String>>,
}

impl Run {
    fn new(inner: Arc<Inner>) -> Self {
        let owner = match &inner.source {
            Source::Own(_) => inner.context.node().name.clone(),
            Source::Owner { node, .. } => node.clone(),
        };
        let there = inner.context.at::<Keys>(&format!("{NAME}@{owner}"));
        let now = Instant::now();
        let (unsaved, held) = (Vec::new(), Held::Unknown);
        Self { inner, owner, there, standing: None, unsaved, held, in_touch: now, reached: false, told: now, said: None }
    }

    /// Whether everything is here now that the owner knew when this began.
    async fn turn(&mut self) -> bool {
        self.reached = false;
        // A copy or a long list of changes is fetched without a pause, but one turn ends, so that refusals are told and the
        // watchdog sees progress.
        let until = Instant::now() + TELL;
        let outcome = loop {
            match self.step().await {
                Ok(true) if Instant::now() < until => {}
                Ok(_) => break Ok(()),
                Err(fault) => break Err(fault),
            }
        };
        self.say(outcome.err());
        self.reached
    }

    /// Fetches and takes one page; whether there is more.
    async fn step(&mut self) -> Result<bool, Fault> {
        let standing = self.read_standing().await?;
        let ahead = self.unsaved.iter().fold(standing, |standing, page| standing.after(page));
        let fetched = if self.unsaved.len() < UNSAVED { self.fetch(ahead.ask()).await } else { Ok(None) };
        let page = match (fetched, &self.inner.source) {
            (Ok(Some(page)), Source::Own(_)) => {
                self.standing = Some(Standing { copied: None, ..ahead.after(&page) });
                if page.begins {
                    self.inner.verifier.changed_all()
                } else {
                    self.inner.verifier.changed(&page.changes)
                }
                return Ok(page.more && !page.begins);
            }
            (Ok(page), _) => page,
            (Err(fault), _) => {
                // What is held is written all the same, and its own fault is told when that one is over.
                let _ = self.save(None).await;
                return Err(fault);
            }
        };
        let more = page.as_ref().is_some_and(|page| page.more);
        self.save(page).await.map(|()| more)
    }

    async fn read_standing(&mut self) -> Result<Standing, Fault> {
        if let Some(standing) = &self.standing {
            return Ok(standing.clone());
        }
        let standing = match &self.inner.source {
            // Whatever was remembered before this life is forgotten with the first page, which begins anew. Nothing is copied.
            Source::Own(_) => Standing { whole: true, ..Standing::default() },
            Source::Owner { readers, .. } => {
                let read = readers.read(Instant::now() + DISK, replica::standing).await;
                read.map_err(|error| Fault::Read(chain(&error)))?
            }
        };
        self.inner.verifier.set_whole(standing.whole);
        self.inner.verifier.changed_all();
        self.standing = Some(standing.clone());
        Ok(standing)
    }

    async fn fetch(&mut self, mut ask: Changes) -> Result<Option<Page>, Fault> {
        if let Source::Own(readers) = &self.inner.source {
            ask.copied = None;
            let read = readers.read(Instant::now() + DISK, move |tables: &Connection| log::page(tables, &ask)).await;
            return read.map_err(|error| Fault::Read(chain(&error)));
        }
        match self.there.call(ask, ASK).await {
            Ok(page) => {
                self.in_touch = Instant::now();
                self.reached = !page.more;
                Ok(Some(page))
            }
            Err(error) => {
                self.reached = false;
                tracing::debug!(owner = %self.owner, %error, "no changes of keys");
                let away = self.in_touch.elapsed();
                if away < OUT_OF_TOUCH { Ok(None) } else { Err(Fault::OutOfTouch(self.owner.clone(), away.as_secs())) }
            }
        }
    }

    /// Writes what is unsaved, and `page` behind it.
    async fn save(&mut self, page: Option<Page>) -> Result<(), Fault> {
        let (Source::Owner { writer, .. }, Some(before)) = (&self.inner.source, self.standing.clone()) else { return Ok(()) };
        let caught_up = page.as_ref().is_some_and(|page| !page.more);
        let page = page.filter(|page| !page.changes.is_empty() || page.part.is_some());
        let pages: Arc<Vec<Page>> = Arc::new(std::mem::take(&mut self.unsaved).into_iter().chain(page).collect());
        if pages.is_empty() {
            self.release(caught_up);
            return Ok(());
        }
        let (taken, from) = (pages.clone(), before.clone());
        let written = writer
            .transaction(Instant::now() + DISK, move |tx| {
                taken.iter().try_fold(from.clone(), |standing, page| {
                    let after = standing.after(page);
                    replica::apply(tx, page, &after).map(|()| after)
                })
            })
            .await;
        let verifier = &self.inner.verifier;
        match written {
            Ok(after) => {
                for page in &*pages {
                    if page.part.is_some() { verifier.changed_all() } else { verifier.changed(&page.changes) }
                }
                self.release(caught_up);
                let verifier = &self.inner.verifier;
                // Only now: from here on what is not found is not there.
                verifier.set_whole(after.whole);
                if before.whole != after.whole {
                    tracing::info!(owner = %self.owner, "the replica of the keys is whole");
                }
                self.standing = Some(after);
                Ok(())
            }
            Err(error) => {
                let fault = Fault::Write(chain(&error));
                // It may have been written after all: written again it is the same.
                self.hold(Arc::unwrap_or_clone(pages), caught_up);
                Err(fault)
            }
        }
    }

    /// Lets go of what was held, all that is known here being in the tables; `caught_up` when that is all that the owner knows.
    fn release(&mut self, caught_up: bool) {
        if self.held == Held::Ours || (self.held == Held::Unknown && caught_up) {
            self.inner.verifier.hold(Some(std::iter::empty()));
            self.held = Held::Nothing;
        }
    }

    /// Keeps in memory what could not be written. A part of a copy is asked for again instead: it is as large as the tables.
    fn hold(&mut self, pages: Vec<Page>, caught_up: bool) {
        self.unsaved = pages;
        let whole = self.unsaved.len();
        if let Some(part) = self.unsaved.iter().position(|page| page.part.is_some()) {
            self.unsaved.truncate(part);
        }
        // While an earlier life may have held more, what is here is not all of it.
        if caught_up || self.held != Held::Unknown {
            self.held = Held::Ours;
        }
        let certain = self.unsaved.len() == whole && whole < UNSAVED && self.held == Held::Ours;
        let changes = self.unsaved.iter().flat_map(|page| &page.changes);
        self.inner.verifier.hold(certain.then_some(changes));
    }

    /// Tells the owner what was refused, if it is time to.
    async fn tell(&mut self) {
        if self.told.elapsed() < TELL {
            return;
        }
        self.told = Instant::now();
        let Some(report) = self.inner.verifier.take_refusals() else { return };
        if let Err(error) = self.there.call(report.clone(), ASK).await {
            tracing::debug!(owner = %self.owner, %error, "refusals could not be told");
            // What may have been told is not told again: too few are shown rather than too many.
            if matches!(error, CallError::NoEffect(_)) {
                self.inner.verifier.put_back(report);
            }
        }
    }

    fn say(&mut self, fault: Option<Fault>) {
        let now = fault.as_ref().map(|fault| format!("keys: {}", fault.public()));
        if self.said.as_ref() == Some(&now) {
            return;
        }
        match (&fault, self.said.as_ref().and_then(Option::as_ref)) {
            (Some(fault), None) => tracing::warn!(%fault, "keys"),
            (None, Some(_)) => tracing::info!("keys: all is well again"),
            _ => {}
        }
        (self.inner.conditions)(now.as_deref());
        self.said = Some(now);
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
