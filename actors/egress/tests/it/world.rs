//! A small Internet: names with answers, addresses with servers behind them, and a canary behind all others.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use horos_egress::{Connect, Connecting, Egress, EgressError, Limits, Options, PlainHttp, Resolve, Resolving, ResponseBody, Roots, Target};
use http::{Request, Response};
use http_body_util::{Empty, Full};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// How much to do: `normal` on every change, `full` with `HOROS_TEST_FULL=1`, which does what the promise names.
pub(crate) fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

/// Numbers at random, each below the one that is asked for, from a seed that is printed; `HOROS_TEST_SEED` decides it.
pub(crate) fn dice() -> impl FnMut(u64) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    let given =
        std::env::var_os("HOROS_TEST_SEED").map(|text| text.to_string_lossy().parse().expect("HOROS_TEST_SEED is a decimal number"));
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one("seed"));
    eprintln!("seed {seed}: repeat with HOROS_TEST_SEED={seed}");
    let mut state = seed;
    move |below| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// Those who come to a slow host: one is served when so many more have come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crowd(Arc<watch::Sender<u64>>);

impl Crowd {
    /// One has come.
    pub(crate) fn come(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Resolves when so many more have come.
    pub(crate) async fn behind(&self, others: u64) {
        let mut counts = self.0.subscribe();
        let turn = *counts.borrow() + others;
        counts.wait_for(|count| *count >= turn).await.expect("it is here");
    }
}

/// Longer than anything here takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A listener that must never be connected to.
#[derive(Clone, Debug)]
pub(crate) struct Canary {
    pub(crate) address: SocketAddr,
    seen: Arc<AtomicUsize>,
}

impl Canary {
    pub(crate) async fn at(address: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let canary = Self { address: listener.local_addr()?, seen: Arc::default() };
        let seen = canary.seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.fetch_add(1, SeqCst);
                drop(stream);
            }
        });
        Ok(canary)
    }

    pub(crate) fn seen(&self) -> usize {
        self.seen.load(SeqCst)
    }
}

/// Who answers for names, and what is behind addresses.
#[derive(Debug)]
pub(crate) struct Internet {
    pub(crate) canary: Canary,
    /// For each name its answers, one a look-up; the last repeats.
    names: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    servers: Mutex<HashMap<IpAddr, SocketAddr>>,
    silent: Mutex<Vec<IpAddr>>,
    pub(crate) lookups: Mutex<Vec<String>>,
    pub(crate) connected: Mutex<Vec<SocketAddr>>,
}

impl Internet {
    pub(crate) async fn new() -> Arc<Self> {
        let canary = Canary::at("127.0.0.1:0").await.unwrap();
        Arc::new(Self {
            canary,
            names: Mutex::default(),
            servers: Mutex::default(),
            silent: Mutex::default(),
            lookups: Mutex::default(),
            connected: Mutex::default(),
        })
    }

    /// `name` resolves to these, one list a look-up.
    pub(crate) fn name(&self, name: &str, answers: &[&[&str]]) {
        let parsed = answers.iter().map(|list| list.iter().map(|text| text.parse().unwrap()).collect()).collect();
        self.names.lock().insert(name.to_owned(), parsed);
    }

    /// Behind `address`, on all ports, is `server`.
    pub(crate) fn server(&self, address: &str, server: SocketAddr) {
        self.servers.lock().insert(address.parse().unwrap(), server);
    }

    /// Whoever connects to `address` waits for ever.
    pub(crate) fn silent(&self, address: &str) {
        self.silent.lock().push(address.parse().unwrap());
    }

    /// `name` at a public `address`, behind which is `server`.
    pub(crate) fn site(&self, name: &str, address: &str, server: SocketAddr) {
        self.name(name, &[&[address]]);
        self.server(address, server);
    }

    pub(crate) fn options(self: &Arc<Self>) -> Options {
        let way = Arc::new(Way(self.clone()));
        Options { plain_http: PlainHttp::Anywhere, roots: Roots::Files, resolver: way.clone(), connector: way, ..Options::default() }
    }

    pub(crate) fn egress(self: &Arc<Self>) -> Egress {
        Egress::new(self.options()).unwrap()
    }
}

#[derive(Debug)]
struct Way(Arc<Internet>);

impl Resolve for Way {
    fn resolve(&self, name: &str) -> Resolving {
        self.0.lookups.lock().push(name.to_owned());
        let name = name.strip_suffix('.').unwrap_or(name);
        let mut names = self.0.names.lock();
        let answer = match names.get_mut(name) {
            Some(answers) if answers.len() > 1 => Ok(answers.remove(0)),
            Some(answers) => Ok(answers[0].clone()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        };
        Box::pin(async { answer })
    }
}

impl Connect for Way {
    fn connect(&self, address: SocketAddr) -> Connecting {
        self.0.connected.lock().push(address);
        if self.0.silent.lock().contains(&address.ip()) {
            return Box::pin(std::future::pending());
        }
        let server = self.0.servers.lock().get(&address.ip()).copied().unwrap_or(self.0.canary.address);
        Box::pin(TcpStream::connect(server))
    }
}

pub(crate) fn limits() -> Limits {
    Limits::within(LONG)
}

/// GET, as a caller does it who has a text.
pub(crate) async fn get(egress: &Egress, url: &str, limits: &Limits) -> Result<Response<ResponseBody>, EgressError> {
    let target: Target = url.parse().map_err(EgressError::Url)?;
    egress.send(Request::get(target.to_uri()).body(Empty::<Bytes>::new()).unwrap(), limits).await
}

/// GET, and all of the body.
pub(crate) async fn read(egress: &Egress, url: &str, limits: &Limits) -> Result<Bytes, EgressError> {
    get(egress, url, limits).await?.into_body().bytes().await
}

pub(crate) async fn post(egress: &Egress, url: &str, body: &'static str, limits: &Limits) -> Result<Response<ResponseBody>, EgressError> {
    let target: Target = url.parse().map_err(EgressError::Url)?;
    egress.send(Request::post(target.to_uri()).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap(), limits).await
}

/// Waits for a state, and fails with what it was last.
pub(crate) async fn until<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> (bool, T)) {
    let end = tokio::time::Instant::now() + LONG;
    loop {
        let (done, last) = look();
        if done {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{what}: last seen {last:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
