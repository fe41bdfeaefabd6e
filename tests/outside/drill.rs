//! A user's own program, as the end-to-end tests build it outside the workspace: services that sell, keep
//! books, misbehave on demand, and put load on others.

mod pages;

use std::{
    collections::BTreeMap,
    future::pending,
    time::{Duration, Instant},
};

use horos_nodes::{
    Database, Opening,
    http::{self, Access, Body, Request},
    store::{
        migrations::{Migration, Migrations},
        rusqlite::{self, params},
        writer::WriteError,
    },
    supervision::{Context, Handle, OpenError, Ref, Restart, Service},
    wire::{CallError, Never, NoEffect, Role, Unknown, protocol},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

// --- a shop: typed calls from FO to BO -----------------------------------------------------------

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Reserve {
    sku: String,
    quantity: u32,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("only {left} left")]
struct OutOfStock {
    left: u32,
}

protocol! {
    Stock = "stock" v1 {
        1 reserve: Reserve => u32, OutOfStock;
    }
}

struct Shelf(BTreeMap<String, u32>);

impl Service for Shelf {
    type Protocol = Stock;
}

impl Handle<Reserve> for Shelf {
    async fn handle(&mut self, wanted: Reserve, _: &Context) -> Result<u32, OutOfStock> {
        let left = self.0.entry(wanted.sku).or_default();
        *left = left.checked_sub(wanted.quantity).ok_or(OutOfStock { left: *left })?;
        Ok(*left)
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Order {
    sku: String,
    quantity: u32,
}

/// What was sold, and by which nodes.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Receipt {
    left: u32,
    sold_by: String,
    asked_by: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
enum OrderError {
    #[error("only {left} left")]
    OutOfStock { left: u32 },
    #[error("{0}")]
    NotDone(String),
}

protocol! {
    Shop = "shop" v1 {
        1 order: Order => Receipt, OrderError;
    }
}

struct Till;

impl Service for Till {
    type Protocol = Shop;
}

impl Handle<Order> for Till {
    async fn handle(&mut self, order: Order, cx: &Context) -> Result<Receipt, OrderError> {
        let stock: Ref<Stock> = cx.at("stock@bo");
        match stock.call(Reserve { sku: order.sku, quantity: order.quantity }, Duration::from_secs(2)).await {
            Ok(left) => Ok(Receipt { left, sold_by: cx.node().to_string(), asked_by: cx.caller().to_string() }),
            // The callee's error arrives as the type it was, not as text.
            Err(CallError::Failed(OutOfStock { left })) => Err(OrderError::OutOfStock { left }),
            Err(error) => Err(OrderError::NotDone(error.to_string())),
        }
    }
}

// --- misbehaviour on demand ----------------------------------------------------------------------

/// Answers the number.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Echo {
    n: u64,
}
/// Answers which node this is.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Place {}
/// Answers after so long.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Slow {
    ms: u64,
}
/// Answers with an error.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Fail {}
/// Panics.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Panic {}
/// Never answers, but lets others run.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Hang {}
/// Never answers and keeps its thread.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Spin {}

#[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("broken on demand, {code}")]
struct Broken {
    code: u32,
}

protocol! {
    Faults = "faults" v1 {
        1 echo: Echo => u64;
        2 place: Place => String;
        3 slow: Slow => u64;
        4 fail: Fail => u64, Broken;
        5 panic: Panic => u64;
        6 hang: Hang => u64;
        7 spin: Spin => u64;
        8 who: pages::Who => String;
    }
}

struct Faulty;

impl Service for Faulty {
    type Protocol = Faults;
}

impl Handle<Echo> for Faulty {
    async fn handle(&mut self, echo: Echo, _: &Context) -> Result<u64, Never> {
        Ok(echo.n)
    }
}

impl Handle<Place> for Faulty {
    async fn handle(&mut self, _: Place, cx: &Context) -> Result<String, Never> {
        Ok(cx.node().name.to_string())
    }
}

impl Handle<Slow> for Faulty {
    async fn handle(&mut self, slow: Slow, _: &Context) -> Result<u64, Never> {
        tokio::time::sleep(Duration::from_millis(slow.ms)).await;
        Ok(slow.ms)
    }
}

impl Handle<Fail> for Faulty {
    async fn handle(&mut self, _: Fail, _: &Context) -> Result<u64, Broken> {
        Err(Broken { code: 7 })
    }
}

impl Handle<Panic> for Faulty {
    async fn handle(&mut self, _: Panic, _: &Context) -> Result<u64, Never> {
        panic!("asked to")
    }
}

impl Handle<Hang> for Faulty {
    async fn handle(&mut self, _: Hang, _: &Context) -> Result<u64, Never> {
        pending().await
    }
}

impl Handle<Spin> for Faulty {
    async fn handle(&mut self, _: Spin, _: &Context) -> Result<u64, Never> {
        #[expect(clippy::empty_loop, reason = "this is the fault")]
        loop {}
    }
}

// --- books: what was answered must be there afterwards -------------------------------------------

const MIGRATIONS: Migrations =
    Migrations::new(&[Migration { version: 1, name: "entries", sql: "CREATE TABLE entries (id INTEGER PRIMARY KEY) STRICT" }]);

/// Writes an entry, after so long.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Add {
    id: u64,
    after_ms: u64,
}
/// Answers every entry.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Entries {}

#[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
enum LedgerError {
    #[error("not written: {0}")]
    NotWritten(String),
    #[error("perhaps written: {0}")]
    Perhaps(String),
}

protocol! {
    Books = "books" v1 {
        1 add: Add => u64, LedgerError;
        2 entries: Entries => Vec<u64>, LedgerError;
    }
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

struct Ledger(Database);

impl Ledger {
    async fn open(opening: Opening) -> Result<Self, OpenError> {
        Ok(Self(opening.database("ledger.db", MIGRATIONS).await?))
    }
}

impl Service for Ledger {
    type Protocol = Books;
}

impl Handle<Add> for Ledger {
    async fn handle(&mut self, add: Add, cx: &Context) -> Result<u64, LedgerError> {
        tokio::time::sleep(Duration::from_millis(add.after_ms)).await;
        let deadline = Instant::now() + cx.remaining().unwrap_or(Duration::from_secs(5));
        let id = i64::try_from(add.id).map_err(|error| LedgerError::NotWritten(error.to_string()))?;
        let write = self.0.writer.transaction(deadline, move |tx| tx.execute("INSERT INTO entries VALUES (?1)", params![id]));
        match write.await {
            Ok(_) => Ok(add.id),
            Err(error) if WriteError::<rusqlite::Error>::had_no_effect(&error) => Err(LedgerError::NotWritten(whole(&error))),
            Err(error) => Err(LedgerError::Perhaps(whole(&error))),
        }
    }
}

impl Handle<Entries> for Ledger {
    async fn handle(&mut self, _: Entries, _: &Context) -> Result<Vec<u64>, LedgerError> {
        let read = self.0.readers.read(Instant::now() + Duration::from_secs(5), |db| {
            let mut entries = db.prepare("SELECT id FROM entries ORDER BY id")?;
            let ids = entries.query_map([], |row| row.get::<_, i64>(0))?;
            ids.map(|id| id.map(i64::unsigned_abs)).collect::<Result<Vec<_>, rusqlite::Error>>()
        });
        read.await.map_err(|error| LedgerError::NotWritten(error.to_string()))
    }
}

// --- load ----------------------------------------------------------------------------------------

/// Calls `target` for a while, so many at a time, and answers how every single call ended.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Run {
    target: String,
    what: What,
    for_ms: u64,
    at_once: u64,
    timeout_ms: u64,
    /// Ids of entries begin here.
    from: u64,
    /// Ends with the first call refused because the callee stops or is gone.
    until_refused: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum What {
    Echo,
    Place,
    Slow { ms: u64 },
    Add { after_ms: u64 },
}

/// Casts that each take so long, as fast as they are taken.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Flood {
    target: String,
    casts: u64,
    ms: u64,
    timeout_ms: u64,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
struct Tally {
    begun: u64,
    done: u64,
    failed: u64,
    no_effect: BTreeMap<String, u64>,
    unknown: BTreeMap<String, u64>,
    slowest_ms: u64,
    /// By how much the latest call outlived its timeout.
    late_ms: u64,
    /// Answers by the node that gave them.
    places: BTreeMap<String, u64>,
    /// Ids answered, ids that certainly were not written, ids that may have been.
    written: Vec<u64>,
    refused: Vec<u64>,
    perhaps: Vec<u64>,
}

protocol! {
    Load = "load" v1 {
        1 run: Run => Tally;
        2 flood: Flood => Tally;
    }
}

struct Loader;

impl Service for Loader {
    type Protocol = Load;
}

/// The error's own name, without what it says.
fn name(error: &impl std::fmt::Debug) -> String {
    let text = format!("{error:?}");
    text.chars().take_while(|c| c.is_ascii_alphanumeric()).collect()
}

enum End {
    Done(Option<String>),
    Failed,
    NoEffect(NoEffect),
    Unknown(Unknown),
}

fn end<T, E>(outcome: Result<T, CallError<E>>, place: impl FnOnce(T) -> Option<String>) -> End {
    match outcome {
        Ok(answer) => End::Done(place(answer)),
        Err(CallError::Failed(_)) => End::Failed,
        Err(CallError::NoEffect(why)) => End::NoEffect(why),
        Err(CallError::Unknown(why)) => End::Unknown(why),
    }
}

async fn once(cx: &Context, run: &Run, id: u64) -> End {
    let within = Duration::from_millis(run.timeout_ms);
    let faults: Ref<Faults> = cx.at(&run.target);
    match run.what {
        What::Echo => end(faults.call(Echo { n: id }, within).await, |_| None),
        What::Place => end(faults.call(Place {}, within).await, Some),
        What::Slow { ms } => end(faults.call(Slow { ms }, within).await, |_| None),
        What::Add { after_ms } => match cx.at::<Books>(&run.target).call(Add { id, after_ms }, within).await {
            Err(CallError::Failed(LedgerError::Perhaps(_))) => End::Unknown(Unknown::NoReply),
            other => end(other, |_| None),
        },
    }
}

impl Tally {
    fn add(&mut self, id: u64, end: End) {
        match end {
            End::Done(place) => {
                self.done += 1;
                self.written.push(id);
                if let Some(place) = place {
                    *self.places.entry(place).or_default() += 1;
                }
            }
            End::Failed => {
                self.failed += 1;
                self.refused.push(id);
            }
            End::NoEffect(why) => {
                self.refused.push(id);
                *self.no_effect.entry(name(&why)).or_default() += 1;
            }
            End::Unknown(why) => {
                self.perhaps.push(id);
                *self.unknown.entry(name(&why)).or_default() += 1;
            }
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.begun += other.begun;
        self.done += other.done;
        self.failed += other.failed;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
        self.late_ms = self.late_ms.max(other.late_ms);
        for (into, from) in [(&mut self.no_effect, other.no_effect), (&mut self.unknown, other.unknown), (&mut self.places, other.places)] {
            for (name, count) in from {
                *into.entry(name).or_default() += count;
            }
        }
        self.written.extend(other.written);
        self.refused.extend(other.refused);
        self.perhaps.extend(other.perhaps);
        self
    }
}

/// One of the callers: call after call until the time is over.
async fn caller(cx: Context, run: Run, number: u64) -> Tally {
    let until = Instant::now() + Duration::from_millis(run.for_ms);
    let mut tally = Tally::default();
    let mut id = run.from + number;
    while Instant::now() < until {
        tally.begun += 1;
        let began = Instant::now();
        let end = once(&cx, &run, id).await;
        let took = began.elapsed().as_millis() as u64;
        tally.slowest_ms = tally.slowest_ms.max(took);
        tally.late_ms = tally.late_ms.max(took.saturating_sub(run.timeout_ms));
        let gone = matches!(&end, End::NoEffect(NoEffect::Stopping | NoEffect::NoRoute(_)) | End::Unknown(_));
        let refused = matches!(&end, End::NoEffect(_));
        tally.add(id, end);
        id += run.at_once;
        if gone && run.until_refused {
            break;
        }
        if refused {
            // The next try at once would only find the same.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    tally
}

impl Handle<Run> for Loader {
    async fn handle(&mut self, run: Run, cx: &Context) -> Result<Tally, Never> {
        let callers: Vec<_> = (0..run.at_once).map(|n| tokio::spawn(caller(cx.clone(), run.clone(), n))).collect();
        let mut tally = Tally::default();
        for caller in callers {
            tally = tally.merge(caller.await.expect("a caller does not panic"));
        }
        Ok(tally)
    }
}

impl Handle<Flood> for Loader {
    async fn handle(&mut self, flood: Flood, cx: &Context) -> Result<Tally, Never> {
        let target: Ref<Faults> = cx.at(&flood.target);
        let mut tally = Tally::default();
        for _ in 0..flood.casts {
            tally.begun += 1;
            let began = Instant::now();
            match target.cast(Slow { ms: flood.ms }, Duration::from_millis(flood.timeout_ms)).await {
                Ok(()) => tally.done += 1,
                Err(why) => *tally.no_effect.entry(name(&why)).or_default() += 1,
            }
            let took = began.elapsed().as_millis() as u64;
            tally.slowest_ms = tally.slowest_ms.max(took);
            tally.late_ms = tally.late_ms.max(took.saturating_sub(flood.timeout_ms));
        }
        Ok(tally)
    }
}

// --- the program ---------------------------------------------------------------------------------

async fn faulty(_: Opening) -> Result<Faulty, OpenError> {
    Ok(Faulty)
}

fn main() -> std::process::ExitCode {
    horos_nodes::main(|n| {
        let nodes = [Role::Bo, Role::Fo, Role::Operator];
        let shelf = |_: Opening| async { Ok::<_, OpenError>(Shelf(BTreeMap::from([("tea".into(), 40)]))) };
        n.on(Role::Bo).service("stock", Restart::Permanent, shelf).to(&[Role::Fo, Role::Operator]);
        n.on(Role::Bo).service("ledger", Restart::Permanent, Ledger::open).to(&nodes);
        n.on(Role::Fo).service("shop", Restart::Permanent, |_: Opening| async { Ok::<_, OpenError>(Till) }).to(&[Role::Operator]);
        for role in [Role::Bo, Role::Fo] {
            n.on(role).service("faulty", Restart::Permanent, faulty).to(&nodes);
            n.on(role).service("sibling", Restart::Permanent, faulty).to(&nodes);
            n.on(role).service("loader", Restart::Permanent, |_: Opening| async { Ok::<_, OpenError>(Loader) }).to(&[Role::Operator]);
            let scope = Access::Scope("drill".parse().expect("a literal scope that keeps the rules"));
            for (prefix, access) in [("/drill", scope), ("/open", Access::Public)] {
                n.on(role).http(prefix, access, |opening: Opening| async move {
                    let here = opening.context().clone();
                    Ok::<_, OpenError>(http::service_fn(move |request: Request<Body>| {
                        pages::page(here.clone().with_call(http::call_of(&request)), request)
                    }))
                });
            }
        }
    })
}
