//! What a user's binary adds to a node: its services, by role.

use std::{collections::HashMap, convert::Infallible, marker::PhantomData, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use horos_dbsync::{filter::FilterSpec, replica::ReadableBy};
use horos_edge::{Access, Body, BoxError, Mount, MountError};
use horos_router::{
    Router,
    policy::Policy as RoutePolicy,
    strategy::{Strategies, Strategy},
};
use horos_store::migrations::Migrations;
use horos_supervision::{
    ChildSpec, Context, Exchange, OnStuck, OpenError, Restart, Service, ServiceSpec, Table, exchange::RegisterError, service,
};
use horos_tools::{
    Output, ToolError,
    native::{Ability, Invocation, Natives},
};
use horos_wire::{
    ActorName, Methods, Protocol, Role,
    policy::{Allowed, Policy, PolicyError, Rule},
    principal::Scope,
    protocol::Method,
};
use http::{Request, Response};
use tokio::runtime::Handle as Runtime;

use crate::{
    databases::{Database, Databases},
    mounts::{self, LayError},
    sync::{NodeSync, Owner, Party, Publication, Replica, Replicas, SyncLayout},
    threads::Threads,
};

/// What [`crate::main`] hands to a user's binary: says which services run on which role, and who may call them.
#[derive(Debug)]
pub struct Horos {
    services: Vec<Registered>,
    mounted: Vec<Mounted>,
    sync: HashMap<Role, SyncLayout>,
    policy: Policy,
    strategies: Strategies,
    natives: Vec<Native>,
    problems: Vec<String>,
    playground: bool,
}

/// A service as it was registered.
pub(crate) struct Registered {
    pub(crate) role: Role,
    methods: &'static [Method],
    spec: ServiceSpec,
    /// Messages that may wait; none where the node's configuration says.
    mailbox: Option<usize>,
    lay: Box<Lay>,
}

/// Lays out a service's child for one node.
type Lay = dyn Fn(&Parts, ServiceSpec) -> Result<ChildSpec, RegisterError> + Send + Sync;

/// The most that [`Allow::mailbox`] takes, as the configuration's `limits.mailbox` does.
const MAX_MAILBOX: usize = 1_000_000;

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.spec.name, self.role)
    }
}

/// A function as it was registered.
struct Native {
    name: Box<str>,
    ability: Ability,
    function: Arc<NativeFunction>,
}

/// What a row of the kind `native` names.
type NativeFunction = dyn Fn(Opening, Invocation) -> BoxFuture<'static, Result<Output, ToolError>> + Send + Sync;

impl std::fmt::Debug for Native {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// An HTTP service as it was registered.
pub(crate) struct Mounted {
    role: Role,
    prefix: Box<str>,
    /// What it wants; none where it is for everybody.
    scope: Option<Scope>,
    lay: Box<LayMount>,
}

/// Lays out an HTTP service's place and its children for one node.
type LayMount = dyn Fn(&Parts) -> Result<(Mount, Vec<ChildSpec>), LayError> + Send + Sync;

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.prefix, self.role)
    }
}

/// What a node gives the services it starts.
pub(crate) struct Parts {
    pub(crate) exchange: Exchange,
    pub(crate) threads: Arc<Threads>,
    /// Where HTTP's work is done.
    pub(crate) http: Runtime,
    pub(crate) databases: Databases,
    pub(crate) data: Arc<PathBuf>,
    pub(crate) capacity: usize,
    pub(crate) sync: Arc<NodeSync>,
    pub(crate) owner: Owner,
    pub(crate) router: Router,
}

impl Parts {
    /// Makes what services of this node are opened with.
    fn opening(&self) -> impl Fn(Context) -> Opening + Send + Sync + 'static + use<> {
        let (data, databases, replicas) = (self.data.clone(), self.databases.clone(), self.sync.replicas.clone());
        move |context| Opening { context, data: data.clone(), databases: databases.clone(), replicas: replicas.clone() }
    }
}

/// What a service is opened with.
#[derive(Clone, Debug)]
pub struct Opening {
    context: Context,
    data: Arc<PathBuf>,
    databases: Databases,
    replicas: Replicas,
}

impl Opening {
    /// A context to call others from, outside of any message.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The node's data directory, for files of the service's own.
    pub fn data(&self) -> &std::path::Path {
        &self.data
    }

    /// The database `name` in the data directory, brought to the newest of `migrations`; its writer and readers
    /// are actors of the node. Services that name the same one share them.
    ///
    /// # Errors
    /// When it cannot be opened, or another service asked for it with other migrations.
    pub async fn database(&self, name: &str, migrations: Migrations) -> Result<Database, OpenError> {
        self.databases.open(name, migrations).await
    }

    /// This node's replica of the publication `name`, to be read. It may be empty yet: [`Replica::position`] says so.
    ///
    /// # Errors
    /// When the node keeps none of that name.
    ///
    /// [`Replica::position`]: horos_dbsync::replica::Replica::position
    pub fn replica(&self, name: &str) -> Result<horos_dbsync::replica::Replica, OpenError> {
        let found = self.replicas.get(name).cloned();
        found.ok_or_else(|| format!("this node keeps no replica of {name:?}; the program or sync.yaml says which it keeps").into())
    }
}

impl Horos {
    pub(crate) fn new(playground: bool) -> Self {
        Self {
            services: Vec::new(),
            mounted: Vec::new(),
            sync: HashMap::new(),
            policy: Policy::builtin(),
            strategies: Strategies::builtin(),
            natives: Vec::new(),
            problems: Vec::new(),
            playground,
        }
    }

    /// Whether this is `up`, which runs a BO and an FO with everything made on the spot.
    pub fn is_playground(&self) -> bool {
        self.playground
    }

    /// Has rows of `routes` name `strategy` by `name`, a way of its own to reach services. One that is built in is replaced.
    pub fn strategy(&mut self, name: &str, strategy: impl Strategy) {
        self.strategies = self.strategies.register(name, Arc::new(strategy));
    }

    /// Has rows of `routes` name `policy` by `name`, under `policies` in their configuration: it stands around their calls.
    pub fn route_policy(&mut self, name: &str, policy: impl RoutePolicy) {
        self.strategies = self.strategies.policy(name, Arc::new(policy));
    }

    /// Lets tools be made of `function`, by rows of `mcp_tools_registry` of the kind `native`: the row called `name`, or whichever names it
    /// in its configuration (`{"function": "…"}`). Rows give it a description, a schema, and whoever may call it.
    ///
    /// It is given the node, whose [`Opening::context`] calls on behalf of whoever asked, and the call with its arguments, checked. What
    /// only [`Ability::Reads`] is what read-only tools may be made of.
    pub fn tool<F, T>(&mut self, name: &str, ability: Ability, function: F)
    where
        F: Fn(Opening, Invocation) -> T + Send + Sync + 'static,
        T: Future<Output = Result<Output, ToolError>> + Send + 'static,
    {
        if self.natives.iter().any(|native| *native.name == *name) {
            self.problems.push(format!("tool {name}: there is one of that name already"));
            return;
        }
        let function = Arc::new(move |node, call| -> BoxFuture<'static, _> { Box::pin(function(node, call)) });
        self.natives.push(Native { name: name.into(), ability, function });
    }

    /// The functions, on one node.
    pub(crate) fn natives(&self, parts: &Parts) -> Natives {
        let natives = Natives::new();
        for Native { name, ability, function } in &self.natives {
            let (node, function) = (parts.opening(), function.clone());
            let label: Arc<str> = format!("tool:{name}").into();
            let exchange = parts.exchange.clone();
            let registered = natives.register(name, *ability, move |call: Invocation| {
                let context = Context::new(exchange.clone(), label.clone()).with_call(call.context.clone()).with_deadline(call.until);
                function(node(context), call)
            });
            registered.expect("two of one name were refused when they were registered");
        }
        natives
    }

    pub(crate) fn strategies(&self) -> &Strategies {
        &self.strategies
    }

    /// Services of the nodes of `role`, which is [`Role::Bo`] or [`Role::Fo`].
    pub fn on(&mut self, role: Role) -> On<'_> {
        On { horos: self, role }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Everything wrong with what was registered.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// How many services a node of `role` runs.
    pub(crate) fn services_on(&self, role: Role) -> usize {
        self.services.iter().filter(|service| service.role == role).count()
    }

    pub(crate) fn children(&self, role: Role, parts: &Parts) -> Result<Vec<ChildSpec>, RegisterError> {
        let services = self.services.iter().filter(|service| service.role == role);
        let lay = |service: &Registered| {
            let capacity = service.mailbox.unwrap_or(parts.capacity);
            (service.lay)(parts, ServiceSpec { capacity, ..service.spec.clone() })
        };
        services.map(lay).collect()
    }

    /// The HTTP services of a node of `role`, and the children that open them.
    pub(crate) fn mounts(&self, role: Role, parts: &Parts) -> Result<(Vec<Mount>, Vec<ChildSpec>), LayError> {
        let (mut mounts, mut children) = (Vec::new(), Vec::new());
        for mounted in self.mounted.iter().filter(|mounted| mounted.role == role) {
            let (mount, own) = (mounted.lay)(parts)?;
            mounts.push(mount);
            children.extend(own);
        }
        Ok((mounts, children))
    }

    /// What the program has nodes of `role` publish and replicate.
    pub(crate) fn sync(&self, role: Role) -> SyncLayout {
        self.sync.get(&role).cloned().unwrap_or_default()
    }

    /// The first path that is served over HTTP on a node of `role`, and the scope that it wants.
    pub(crate) fn http_example(&self, role: Role) -> Option<(&str, Option<&Scope>)> {
        let mounted = self.mounted.iter().find(|mounted| mounted.role == role)?;
        Some((&mounted.prefix, mounted.scope.as_ref()))
    }

    /// Arguments of a call that can be made here, for people who see the program for the first time.
    pub(crate) fn example(&self) -> Option<String> {
        let simple = |method: &Method| (method.request)().get("properties").and_then(|it| it.as_object()).is_none_or(|it| it.is_empty());
        let every = || self.services.iter().flat_map(|service| service.methods.iter().map(move |method| (service, method)));
        let (service, method, body) = match every().find(|(_, method)| simple(method)) {
            Some((service, method)) => (service, method, "{}"),
            None => every().next().map(|(service, method)| (service, method, "{…}"))?,
        };
        Some(format!("call {}@{} '{{\"{}\":{body}}}'", service.spec.name, service.role, method.name))
    }

    fn note(&mut self, outcome: Result<(), PolicyError>) {
        if let Err(error) = outcome {
            self.problems.push(error.to_string());
        }
    }
}

/// Registers services, publications and replicas on one role.
#[derive(Debug)]
pub struct On<'a> {
    horos: &'a mut Horos,
    role: Role,
}

impl<'a> On<'a> {
    /// Publishes what `filter` says of the database `file`, which is in the data directory, under `name`, and to no node but those of
    /// the roles in `to`. Whatever process writes the file. `sync.yaml` can name further publications, see [`crate::sync`].
    pub fn publish(self, name: &str, file: &str, filter: FilterSpec, to: &[Role]) {
        let to = to.iter().copied().map(Party::Role).collect();
        self.lay_out(name, file, |layout, database| {
            layout.publications.insert(name.to_owned(), Publication { database, to, filter, push: Vec::new() }).is_some()
        });
    }

    /// Keeps a replica of the publication `name` in `file`, in the data directory, from whichever BO publishes it. Services read it by
    /// [`Opening::replica`].
    pub fn replica(self, name: &str, file: &str) {
        let (from, readable_by) = (Party::Role(Role::Bo), ReadableBy::Owner);
        self.lay_out(name, file, |layout, file| {
            layout.replicas.insert(name.to_owned(), Replica { file, from, readable_by, pushed_by: None }).is_some()
        });
    }

    fn lay_out(self, name: &str, file: &str, insert: impl FnOnce(&mut SyncLayout, ActorName) -> bool) {
        let Self { horos, role } = self;
        // A name of our own rules is a file name without a path in it.
        let file: ActorName = match file.parse() {
            Ok(file) => file,
            Err(error) => return horos.problems.push(format!("{name}: the file {file:?}: {error}")),
        };
        if !role.is_node() {
            return horos.problems.push(format!("{name}: the role {role} has no databases; use bo or fo"));
        }
        if insert(horos.sync.entry(role).or_default(), file) {
            horos.problems.push(format!("{name} is there twice"));
        }
    }

    /// Runs a service called `name`, opened by `open` at each start and restarted as `restart` says.
    ///
    /// Only actors of the same node may call it until [`Allow::to`] says who else.
    pub fn service<S, O, F>(self, name: &str, restart: Restart, open: O) -> Allow<'a, S::Protocol>
    where
        S: Service,
        S::Protocol: Methods<Table<S>>,
        O: Fn(Opening) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<S, OpenError>> + Send + 'static,
    {
        let Self { horos, role } = self;
        if !role.is_node() {
            horos.problems.push(format!("service {name}: the role {role} runs no services; use bo or fo"));
        }
        horos.policy.declare::<S::Protocol>();
        let offered = horos.policy.offer(role, S::Protocol::NAME);
        horos.note(offered);
        let registered = match name.parse() {
            Ok(name) => {
                let mut spec = ServiceSpec::new(name);
                spec.restart = restart;
                horos.services.push(Registered {
                    role,
                    methods: S::Protocol::methods(),
                    spec,
                    mailbox: None,
                    lay: Box::new(move |parts, spec| start(parts, spec, &open)),
                });
                Some(horos.services.len() - 1)
            }
            Err(error) => {
                horos.problems.push(error.to_string());
                None
            }
        };
        Allow { horos, role, registered, protocol: PhantomData }
    }

    /// Serves whatever `open` makes over HTTP, for every path that is `prefix` or below it: HTTP/1.1, 2 and 3 alike.
    ///
    /// `access` says who may come; there is no default. `open` is called when the node starts, which fails with it, and again
    /// when the databases were opened anew or an operator restarts it; until it has succeeded then, 503 is answered. See
    /// [`crate::http`].
    pub fn http<S, B, O, F>(self, prefix: &str, access: Access, open: O)
    where
        S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
        O: Fn(Opening) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, OpenError>> + Send + 'static,
    {
        let (under, wanted) = (Box::<str>::from(prefix), access.clone());
        let open = opening(open);
        self.mount(prefix, access, Box::new(move |parts| mounts::lay(parts, &under, wanted.clone(), open(parts))));
    }

    /// As [`On::http`] for what only reads (`GET`, `HEAD`, `OPTIONS`), from replicas of `publications`; all else is passed on to the
    /// node that owns the data, which serves it under the same prefix. Whoever wrote reads what was written: a read that brings
    /// back the position of its write waits for the replica, and where that takes too long the owner answers.
    ///
    /// Who the owner is, `owner` in `sync.yaml` says, or the first BO among the seeds. It proves key and token itself once more.
    pub fn http_reads<S, B, O, F>(self, prefix: &str, access: Access, publications: &[&str], open: O)
    where
        S: tower::Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
        O: Fn(Opening) -> F + Send + Sync + 'static,
        F: Future<Output = Result<S, OpenError>> + Send + 'static,
    {
        let names: Result<Vec<ActorName>, _> = publications.iter().map(|name| name.parse()).collect();
        let names = match names {
            Ok(names) => names,
            Err(error) => return self.horos.problems.push(format!("http {prefix}: {error}")),
        };
        let (under, wanted) = (Box::<str>::from(prefix), access.clone());
        let open = opening(open);
        self.mount(prefix, access, Box::new(move |parts| mounts::lay_reads(parts, &under, wanted.clone(), &names, open(parts))));
    }

    /// Lets outsiders call services by route: `POST {prefix}/{service}`, for those whose route says so, and whoever has the scope that
    /// it names. See [`horos_router::gateway`].
    pub fn gateway(self, prefix: &str) {
        let under = Box::<str>::from(prefix);
        self.mount(prefix, Access::PerRequest, Box::new(move |parts| mounts::lay_gateway(parts, &under)));
    }

    /// Passes on whatever comes below `prefix` to the node that owns the data, which serves it under the same prefix.
    pub fn pass_on(self, prefix: &str, access: Access) {
        let (under, wanted) = (Box::<str>::from(prefix), access.clone());
        self.mount(prefix, access, Box::new(move |parts| mounts::lay_pass_on(parts, &under, wanted.clone())));
    }

    fn mount(self, prefix: &str, access: Access, lay: Box<LayMount>) {
        let Self { horos, role } = self;
        if !role.is_node() {
            horos.problems.push(format!("http {prefix}: the role {role} serves nothing; use bo or fo"));
        }
        if let Err(error) = mounts::check(prefix) {
            horos.problems.push(format!("http: {error}"));
            return;
        }
        let own = ["/livez", "/readyz", "/metrics"];
        let taken = horos.mounted.iter().any(|other| other.role == role && &*other.prefix == prefix);
        if taken || own.contains(&prefix) {
            horos.problems.push(format!("http: {}", MountError::Taken(prefix.into())));
            return;
        }
        let scope = if let Access::Scope(scope) = access { Some(scope) } else { None };
        horos.mounted.push(Mounted { role, prefix: prefix.into(), scope, lay });
    }
}

/// What opens an HTTP service on one node.
fn opening<S, O, F>(open: O) -> impl Fn(&Parts) -> mounts::Open<S> + Send + Sync + 'static
where
    S: 'static,
    O: Fn(Opening) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, OpenError>> + Send + 'static,
{
    let open = Arc::new(open);
    move |parts| {
        let (node, open) = (parts.opening(), open.clone());
        Arc::new(move |context| Box::pin(open(node(context))))
    }
}

fn start<S, O, F>(parts: &Parts, spec: ServiceSpec, open: &O) -> Result<ChildSpec, RegisterError>
where
    S: Service,
    S::Protocol: Methods<Table<S>>,
    O: Fn(Opening) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<S, OpenError>> + Send + 'static,
{
    let (node, open) = (parts.opening(), open.clone());
    service(&parts.exchange, &parts.threads.next(), spec, move |context| -> BoxFuture<'static, Result<S, OpenError>> {
        Box::pin(open(node(context)))
    })
}

/// Says who may call a service from elsewhere, and what it may hold and take; what is not said is denied, or as usual.
#[derive(Debug)]
pub struct Allow<'a, P> {
    horos: &'a mut Horos,
    role: Role,
    /// Which of the services; none where it could not be registered.
    registered: Option<usize>,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol> Allow<'_, P> {
    /// Lets callers of these roles call every method of the service's protocol on nodes of its role.
    pub fn to(self, callers: &[Role]) -> Self {
        self.allow(callers, None)
    }

    /// Lets callers of these roles call some methods, by their names in the JSON form.
    pub fn only(self, callers: &[Role], methods: &[&str]) -> Self {
        self.allow(callers, Some(methods))
    }

    /// How many messages may wait for it; the next is refused as overloaded. From 1 to 1,000,000; without this, what
    /// `limits.mailbox` in the node's configuration says.
    pub fn mailbox(self, messages: usize) -> Self {
        if !(1..=MAX_MAILBOX).contains(&messages) {
            let problem = format!("{}: a mailbox of {messages} messages; use 1 to {MAX_MAILBOX}", P::NAME);
            self.horos.problems.push(problem);
            return self;
        }
        self.set(|service| service.mailbox = Some(messages))
    }

    /// At one message for longer than this, it is stuck: shown so, and treated as [`Allow::on_stuck`] says. Default 5 s.
    pub fn stuck_after(self, limit: Duration) -> Self {
        self.set(|service| service.spec.stuck_after = limit)
    }

    /// What happens when it is stuck. Default [`OnStuck::Report`].
    pub fn on_stuck(self, then: OnStuck) -> Self {
        self.set(|service| service.spec.on_stuck = then)
    }

    /// How long it may take to stop, with the message in hand, before it is killed. Default 5 s.
    pub fn shutdown(self, limit: Duration) -> Self {
        self.set(|service| service.spec.shutdown = limit)
    }

    fn set(self, change: impl FnOnce(&mut Registered)) -> Self {
        if let Some(service) = self.registered.and_then(|at| self.horos.services.get_mut(at)) {
            change(service);
        }
        self
    }

    fn allow(self, callers: &[Role], methods: Option<&[&str]>) -> Self {
        let allowed = match methods {
            None => Allowed::All,
            Some(names) => {
                let number = |name: &&str| P::methods().iter().find(|method| method.name == *name).map(|method| method.number);
                for name in names.iter().filter(|name| number(name).is_none()) {
                    self.horos.problems.push(format!("{} has no method {name:?}", P::NAME));
                }
                Allowed::List(names.iter().filter_map(number).collect())
            }
        };
        for caller in callers {
            let rule = Rule { caller: *caller, callee: self.role, protocol: P::NAME.into(), methods: allowed.clone() };
            let outcome = self.horos.policy.allow(rule);
            self.horos.note(outcome);
        }
        self
    }
}
