//! A user's own program for the tests of routes: counters that write down whom they have served, and a caller that puts load on a
//! service by its route and keeps a record of how every single call ended.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    future::pending,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use horos_nodes::{
    Horos, Opening, Routed, Routes as _,
    supervision::{Context, Handle, OpenError, Restart, Service},
    wire::{CallError, Never, Role, protocol},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Counters `c0` to `c255`: as many as the changes of a route that can be told apart.
const COUNTERS: u64 = 256;

/// Is written down, and answered by whom.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Count {
    number: u64,
}
/// Who answered.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Counted {
    by: String,
}
/// Panics.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Fall {}
/// Never answers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Freeze {}
/// Answers after so long.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Nap {
    ms: u64,
}
/// Answers so many letters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Letters {
    count: usize,
}

protocol! {
    Counter = "counter" v1 {
        1 count: Count => Option<Counted>;
        2 fall: Fall => ();
        3 freeze: Freeze => ();
        4 nap: Nap => ();
        5 letters: Letters => String;
    }
}

/// Its book outlives it, and `kill -9`: each number is written before it is answered.
struct Teller {
    by: String,
    book: File,
}

impl Teller {
    fn open(name: &str, opening: &Opening) -> Result<Self, OpenError> {
        let by = format!("{name}@{}", opening.context().node().name);
        let book = OpenOptions::new().create(true).append(true).open(opening.data().join(format!("{name}.book")))?;
        Ok(Self { by, book })
    }
}

impl Service for Teller {
    type Protocol = Counter;
}
impl Handle<Count> for Teller {
    async fn handle(&mut self, count: Count, _: &Context) -> Result<Option<Counted>, Never> {
        self.book.write_all(&count.number.to_le_bytes()).expect("the book can be written");
        Ok(Some(Counted { by: self.by.clone() }))
    }
}
impl Handle<Fall> for Teller {
    async fn handle(&mut self, _: Fall, _: &Context) -> Result<(), Never> {
        panic!("asked to")
    }
}
impl Handle<Freeze> for Teller {
    async fn handle(&mut self, _: Freeze, _: &Context) -> Result<(), Never> {
        pending().await
    }
}
impl Handle<Nap> for Teller {
    async fn handle(&mut self, nap: Nap, _: &Context) -> Result<(), Never> {
        tokio::time::sleep(Duration::from_millis(nap.ms)).await;
        Ok(())
    }
}
impl Handle<Letters> for Teller {
    async fn handle(&mut self, letters: Letters, _: &Context) -> Result<String, Never> {
        Ok("x".repeat(letters.count))
    }
}

// --- the caller ----------------------------------------------------------------------------------

/// Calls a service, once.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Once {
    service: String,
    what: What,
    timeout_ms: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum What {
    Count,
    Fall,
    Freeze,
    Nap { ms: u64 },
    Letters { count: usize },
}

/// How a call ended: `done`, `failed`, `no_effect` or `unknown`; by whom, or why.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Ended {
    how: String,
    by: String,
    why: String,
    text: String,
    took_ms: u64,
}

/// Calls a service, so many callers at a time, until it has made so many calls or is told to end.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct Begin {
    service: String,
    calls: u64,
    at_once: u64,
    timeout_ms: u64,
    /// Of so many places in turn the route leads to one at a time: a call must not go to one from before the last that is known. 0
    /// is: do not look.
    ring: u64,
}

/// What has come of it so far; ends it if asked to.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Look {
    end: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
struct Record {
    running: bool,
    begun: u64,
    done: u64,
    failed: u64,
    no_effect: BTreeMap<String, u64>,
    unknown: BTreeMap<String, u64>,
    /// One text of each kind of failure.
    texts: BTreeMap<String, String>,
    by: BTreeMap<String, u64>,
    /// By how much the latest call outlived its timeout.
    late_ms: u64,
    /// Calls that were led by a route of before.
    misrouted: Vec<String>,
    /// Calls that took so long that this cannot be told of them.
    untold: u64,
    /// To how many places, one after the other, the route has led.
    turns: u64,
}

protocol! {
    Caller = "caller" v1 {
        1 once: Once => Ended;
        2 begin: Begin => ();
        3 look: Look => Record;
    }
}

/// Numbers by how their calls ended.
#[derive(Default)]
struct Numbers {
    done: Vec<u8>,
    refused: Vec<u8>,
    unknown: Vec<u8>,
}

#[derive(Default)]
struct Load {
    record: Mutex<(Record, Numbers)>,
    next: AtomicU64,
    running: AtomicU64,
    end: AtomicBool,
    /// The newest place that a call has come from that has ended.
    newest: AtomicU64,
}

struct Phone {
    data: PathBuf,
    load: Arc<Load>,
}

impl Service for Phone {
    type Protocol = Caller;
}

/// The error's own name, without what it says.
fn name(error: &impl std::fmt::Debug) -> String {
    let text = format!("{error:?}");
    text.chars().take_while(|c| c.is_ascii_alphanumeric()).collect()
}

fn ended<T>(outcome: Result<T, CallError<Never>>, by: impl FnOnce(T) -> String, began: Instant) -> Ended {
    let took_ms = began.elapsed().as_millis() as u64;
    let ended = |how: &str, by: String, why: String, text: String| Ended { how: how.into(), by, why, text, took_ms };
    match outcome {
        Ok(reply) => ended("done", by(reply), String::new(), String::new()),
        Err(CallError::NoEffect(why)) => ended("no_effect", String::new(), name(&why), why.to_string()),
        Err(CallError::Unknown(why)) => ended("unknown", String::new(), name(&why), why.to_string()),
        Err(CallError::Failed(never)) => match never {},
    }
}

impl Handle<Once> for Phone {
    async fn handle(&mut self, once: Once, cx: &Context) -> Result<Ended, Never> {
        let (service, within) = (cx.routed::<Counter>(&once.service), Duration::from_millis(once.timeout_ms));
        let (began, nobody) = (Instant::now(), |()| String::new());
        Ok(match once.what {
            What::Count => {
                let by = |counted: Option<Counted>| counted.map_or_else(|| "nobody".into(), |counted| counted.by);
                ended(service.call(Count { number: u64::MAX }, within).await, by, began)
            }
            What::Fall => ended(service.call(Fall {}, within).await, nobody, began),
            What::Freeze => ended(service.call(Freeze {}, within).await, nobody, began),
            What::Nap { ms } => ended(service.call(Nap { ms }, within).await, nobody, began),
            What::Letters { count } => ended(service.call(Letters { count }, within).await, |text| text.len().to_string(), began),
        })
    }
}

impl Handle<Begin> for Phone {
    async fn handle(&mut self, begin: Begin, cx: &Context) -> Result<(), Never> {
        self.load.end.store(true, SeqCst);
        self.load = Arc::default();
        self.load.running.store(begin.at_once, SeqCst);
        // Outside of this message, whose deadline would be every call's.
        let cx = cx.clone().with_call(Default::default());
        for _ in 0..begin.at_once {
            let (service, begin, load, data) = (cx.routed::<Counter>(&begin.service), begin.clone(), self.load.clone(), self.data.clone());
            tokio::spawn(async move {
                caller(&service, &begin, &load).await;
                if load.running.fetch_sub(1, SeqCst) == 1 {
                    write(&load, &data);
                    load.end.store(true, SeqCst);
                }
            });
        }
        Ok(())
    }
}

impl Handle<Look> for Phone {
    async fn handle(&mut self, look: Look, _: &Context) -> Result<Record, Never> {
        // Set before it is said that nobody runs: the files are there by then.
        let running = self.load.running.load(SeqCst) > 0 || !self.load.end.load(SeqCst);
        if look.end {
            self.load.end.store(true, SeqCst);
        }
        let record = self.load.record.lock().expect("no caller panics").0.clone();
        Ok(Record { running, ..record })
    }
}

/// One of the callers.
async fn caller(service: &Routed<Counter>, begin: &Begin, load: &Load) {
    let within = Duration::from_millis(begin.timeout_ms);
    while !load.end.load(SeqCst) {
        let number = load.next.fetch_add(1, SeqCst);
        if number >= begin.calls {
            return;
        }
        let (known, began) = (load.newest.load(SeqCst), Instant::now());
        let outcome = service.call(Count { number }, within).await;
        let took = began.elapsed();
        let ended = ended(outcome, |counted| counted.map_or_else(|| "nobody".into(), |counted| counted.by), began);
        let refused = ended.how != "done";
        // A reply of the row's own costs nothing: without a rest there would be hardly any other.
        let nobodys = begin.ring > 0 && ended.by.starts_with('n');
        {
            let mut record = load.record.lock().expect("no caller panics");
            let (record, numbers) = &mut *record;
            record.begun += 1;
            record.late_ms = record.late_ms.max(took.saturating_sub(within).as_millis() as u64);
            if refused {
                record.texts.entry(ended.why.clone()).or_insert(ended.text);
            }
            let list = match &*ended.how {
                "done" => {
                    record.done += 1;
                    placed(&ended.by, known, took, begin.ring, load, record);
                    // A place of a ring counts as its kind: what comes before its number and after its @.
                    let kind = if begin.ring > 0 { ended.by.replace(|c: char| c.is_ascii_digit(), "") } else { ended.by };
                    *record.by.entry(kind).or_default() += 1;
                    &mut numbers.done
                }
                "no_effect" => {
                    *record.no_effect.entry(ended.why).or_default() += 1;
                    &mut numbers.refused
                }
                _ => {
                    *record.unknown.entry(ended.why).or_default() += 1;
                    &mut numbers.unknown
                }
            };
            list.extend_from_slice(&number.to_le_bytes());
        }
        if refused || nobodys {
            // After a refusal, the next try at once would only find the same.
            tokio::time::sleep(Duration::from_millis(if refused { 5 } else { 1 })).await;
        }
    }
}

/// Whether a call that began when the place `known` was the newest may have ended at `by`.
fn placed(by: &str, known: u64, took: Duration, ring: u64, load: &Load, record: &mut Record) {
    if ring == 0 {
        return;
    }
    let digits: String = by.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let Ok(place) = digits.parse::<u64>() else { return record.misrouted.push(format!("{by:?} is no place")) };
    let further = (place + ring - known % ring) % ring;
    if further < ring / 2 {
        let newest = load.newest.fetch_max(known + further, SeqCst);
        record.turns += u64::from(newest < known + further);
    } else if took > Duration::from_millis(500) {
        record.untold += 1;
    } else if record.misrouted.len() < 20 {
        record.misrouted.push(format!("{by} after {} was known, in {took:?}", known % ring));
    }
}

fn write(load: &Load, data: &Path) {
    let record = load.record.lock().expect("no caller panics");
    for (name, numbers) in [("done", &record.1.done), ("refused", &record.1.refused), ("unknown", &record.1.unknown)] {
        std::fs::write(data.join(format!("calls.{name}")), numbers).expect("the data directory can be written");
    }
}

// --- the program ---------------------------------------------------------------------------------

fn register(n: &mut Horos) {
    let nodes = [Role::Bo, Role::Fo, Role::Operator];
    for role in [Role::Bo, Role::Fo] {
        let names = (0..COUNTERS).map(|number| format!("c{number}")).chain(["counter".into(), "wild".into(), "frozen".into()]);
        for name in names {
            let called = name.clone();
            let open = move |opening: Opening| {
                let teller = Teller::open(&called, &opening);
                async move { teller }
            };
            n.on(role).service(&name, Restart::Permanent, open).to(&nodes);
        }
        let phone = |opening: Opening| async move { Ok::<_, OpenError>(Phone { data: opening.data().to_owned(), load: Arc::default() }) };
        n.on(role).service("phone", Restart::Permanent, phone).to(&[Role::Operator]);
        n.on(role).gateway("/services");
    }
}

fn main() -> std::process::ExitCode {
    horos_nodes::main(register)
}
