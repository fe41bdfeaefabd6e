//! Which methods are tools, and what a model is told of each: what it does, when to use it, and what it is not for.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use horos_wire::{
    Request,
    protocol::{
        control::{
            DeleteRoute, ForceBreaker, GetRoute, History, ListForced, ListRoutes, PAGE, ResetBreaker, Rollback as RollbackRoute, SetRoute,
            SetStrategy,
        },
        node::{Actors, Crash, Describe, MAX_MAINTENANCE, Maintain, NAME, Recorder, Restart, Serving, Status, Tree},
        router::{self, GetService, ListBreakers, ListServices},
        sync::{Resume, Rollback as RollbackReplica, StartVerify},
    },
};
use rmcp::model::JsonObject;
use serde_json::{Value, json};

use super::{Ask, At, Desk, PREFIX, PUBLICATION, REPLICA, Told, replication, schema};
use crate::{Behaviour, Definition, Mode, Run, Spec};

/// Who asks the whole cluster; `nodes` runs it under this name.
const CLUSTER: &str = "horos.cluster";
/// For actors to answer: five seconds are theirs, and the cluster's trees take one more.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What looks only.
pub(super) const LOOKS: Behaviour = Behaviour { mode: Mode::ReadOnly, destructive: false, idempotent: true };
/// What changes something that can be changed back.
const CHANGES: Behaviour = Behaviour { mode: Mode::ReadWrite, destructive: false, idempotent: false };
/// The same, where twice is once.
const SETS: Behaviour = Behaviour { idempotent: true, ..CHANGES };
/// What takes something from users: asked for twice.
const TAKES: Behaviour = Behaviour { destructive: true, ..CHANGES };
/// Edits of one sort that a page has unless it was said how many.
const EDITS: u32 = 50;

const AFTER: &str = "Continues a list: the `next` of the page before, unchanged. Leave it out for the first page.";
const WHY: &str = "Why, in a sentence, for whoever reads the history later.";
const SERVICE: &str = "The service's name, as horos_routes_list shows it.";
const ENDPOINT: &str = "The endpoint's key, as horos_breaker_list shows it; without it the order is for every endpoint of the service.";
const ACTOR: &str = "The actor on this node: a service's name such as `stock`, or its path in the tree such as `root/data/store`.";
const OTHER_NODE: &str = "The name of the node to ask, such as `fo-1`. Without it the node that this MCP server runs on.";
const STRATEGY: &str = "How the service is reached: `local` (an actor of the node that calls), `quic` (an actor of any node), `http` (POST to a URL), \
                        `mcp` (a tool of an MCP server), `noop` (calls succeed and do nothing).";
const WHERE: &str = "Where. For `local` an actor's name; for `quic` name, name@node or name@role; for `http` an absolute URL without user or \
                     password. Without it `local` and `quic` take the service's own name.";

pub(super) fn tools(desk: &Desk) -> Vec<Arc<Definition>> {
    let mut tools = about_nodes(desk);
    tools.extend(about_routes(desk));
    tools.extend(about_breakers(desk));
    tools.extend(about_replication(desk));
    tools
}

fn about_nodes(desk: &Desk) -> Vec<Arc<Definition>> {
    let category = "horos-node";
    vec![
        method::<Status>("health", "Node health", category, LOOKS, At::Node(NAME))
            .about(
                "Tells whether a node is ready to take work, why not if it is not (`conditions`), which release it runs, how long it has \
                 been up and its resident memory. Use it first when something does not work, once for each node that horos_tree names.",
            )
            .made(desk),
        method::<Tree>("tree", "Supervision tree", category, LOOKS, At::Here(CLUSTER))
            .about(
                "Shows the supervision tree: every actor with its state, mailbox, messages handled, failed and refused, restarts, latency \
                 and last error; and which other nodes are up, suspect or down. Use it to find which actor fails, restarts or is stuck. \
                 With `cluster` each reachable node's tree is shown, which is long; ask for that only when one node does not explain it.",
            )
            .argument("cluster", "Whether to ask every node that is known for its tree as well. Default false.")
            .otherwise("cluster", false)
            .wrapped("nodes")
            .made(desk),
        method::<Actors>("actors", "Named actors", category, LOOKS, At::Here(CLUSTER))
            .about(
                "Lists the named actors that can be called, with their node, protocol and methods. Use it to find a service's exact name \
                 and which node runs it; horos_describe then tells what its methods take.",
            )
            .argument("cluster", "Whether to list those of every node in reach too. Default true.")
            .otherwise("cluster", true)
            .wrapped("actors")
            .made(desk),
        method::<Describe>("describe", "Describe an actor", category, LOOKS, At::Node(NAME))
            .about(
                "Gives the protocol of one actor: each method with the JSON Schemas (as text) of its request, reply and error. Use it before \
                 a route or a tool is written that calls the actor.",
            )
            .argument("actor", "The service's name, as horos_actors shows it.")
            .made(desk),
        method::<Recorder>("recorder", "Flight recorder", category, LOOKS, At::Here(NAME))
            .about(
                "Shows an actor's flight recorder: its last messages with caller, outcome, wait and handling time. Use it to see what an \
                 actor of this node did before it failed, restarted or got stuck. It holds no arguments and no payloads.",
            )
            .argument("actor", ACTOR)
            .made(desk),
        method::<Serving>("serving", "HTTP addresses and maintenance", category, LOOKS, At::Here(NAME))
            .about("Tells where this node serves HTTP, and what users are told if maintenance is on.")
            .made(desk),
        method::<Restart>("restart", "Restart an actor", category, TAKES, At::Here(NAME))
            .about(
                "Stops an actor of this node in good order and starts it again; what is below it in the tree goes with it. Use it for an \
                 actor that is stuck or keeps failing, after horos_recorder has been read: messages that wait for it may be refused meanwhile.",
            )
            .argument("actor", ACTOR)
            .made(desk),
        method::<Crash>("crash", "Crash an actor, for drills", category, TAKES, At::Here(NAME))
            .about(
                "Kills an actor of this node as a bug would, without letting it finish; its supervisor decides what follows. Only for drills \
                 that somebody has asked for: to get an actor going again use horos_restart.",
            )
            .argument("actor", ACTOR)
            .made(desk),
        method::<Maintain>("maintenance", "Maintenance on or off", category, TAKES, At::Here(NAME))
            .about(
                "Turns maintenance of this node on, so that users over HTTP get 503 with the message in place of service, or off again. It \
                 lasts over restarts of the node until it is turned off.",
            )
            .argument("message", &format!("What users are told, at most {MAX_MAINTENANCE} bytes. Leave it out to turn maintenance off."))
            .made(desk),
    ]
}

fn about_routes(desk: &Desk) -> Vec<Arc<Definition>> {
    let category = "horos-routes";
    vec![
        method::<ListRoutes>("routes_list", "List routes", category, LOOKS, At::Owner)
            .about(
                "Lists the routes of the cluster as they stand in the table: service, strategy, endpoint, policies (`config`, JSON as text), \
                 `version`, and everything that is wrong with a row. Use it to see how services are meant to be reached; \
                 horos_routes_status tells what a node really does.",
            )
            .argument("after", AFTER)
            .made(desk),
        method::<GetRoute>("routes_get", "Get a route", category, LOOKS, At::Owner)
            .about("Gives one route as it stands in the table, with its `version`, which an edit can be made to depend on.")
            .argument("service", SERVICE)
            .made(desk),
        method::<History>("routes_history", "History of routes", category, LOOKS, At::OwnerItself)
            .about(
                "Lists edits of routes and of forced breakers, the newest first: who, when, why, and the route before and after. Use it to \
                 find what changed before trouble began, and the number of the edit for horos_routes_rollback.",
            )
            .argument("service", "Only edits of this service.")
            .argument("before", "Continues a list: the `next` of the page before. Leave it out for the newest.")
            .argument("limit", &format!("How many at most, {PAGE} at a time. Default {EDITS}."))
            .otherwise("limit", EDITS)
            .made(desk),
        method::<ListServices>("routes_status", "Status of routed services", category, LOOKS, At::Node(router::NAME))
            .about(
                "Tells what one node's router does: for each service the row in force, why a newer row is not, calls, failures, retries, \
                 latency, and each endpoint with its breaker and last error. Use it to see whether calls of a service succeed and where \
                 they go.",
            )
            .argument("after", AFTER)
            .made(desk),
        method::<GetService>("routes_inspect", "Inspect a routed service", category, LOOKS, At::Here(router::NAME))
            .about(
                "Tells everything that this node's router knows of one service: what horos_routes_status tells, and the policies in force \
                 with their defaults, calls refused as overloaded, limited or by an open breaker, hedges and fallbacks.",
            )
            .argument("service", SERVICE)
            .made(desk),
        method::<SetRoute>("routes_set", "Set a route", category, CHANGES, At::OwnerItself)
            .about(
                "Makes a route, or replaces the whole route of that service, for every node. A wrong row is refused with all that is wrong \
                 with it. It can be taken back exactly by horos_routes_rollback. To change only how a service is reached and leave its \
                 policies alone, use horos_routes_set_strategy.",
            )
            .argument("service", "The service's name: what callers call.")
            .argument("strategy", STRATEGY)
            .argument("endpoint", WHERE)
            .argument("expected", "What must be there for the edit to be made: \"absent\", or {\"version\": …} as routes_get shows it. Without it whatever is there is replaced.")
            .argument("why", WHY)
            .text("config", "The policies as a JSON object: timeout_ms, retry, breaker, concurrency and others. Without it the defaults.")
            .made(desk),
        method::<SetStrategy>("routes_set_strategy", "Change how a service is reached", category, SETS, At::OwnerItself)
            .about(
                "Changes the strategy, and the endpoint if one is given, of a route that exists, for every node; its policies stay. Use it to \
                 move a service to another node or server. It can be taken back exactly by horos_routes_rollback.",
            )
            .argument("service", SERVICE)
            .argument("strategy", STRATEGY)
            .argument("endpoint", "Where from now on. Without it where it was; the empty text is nowhere in particular.")
            .argument("expected", "The `version` that the route must have for the edit to be made.")
            .argument("why", WHY)
            .made(desk),
        method::<RollbackRoute>("routes_rollback", "Take back an edit of a route", category, CHANGES, At::OwnerItself)
            .about(
                "Puts a route back to exactly what it was before its last edit, before a given edit or after one. Itself an edit, which can \
                 be taken back. Use it when a change of a route made things worse.",
            )
            .argument("service", SERVICE)
            .argument("to", "\"last\": before its last edit; {\"before\": N}: before edit N of this route; {\"as_of\": N}: as it was after edit N of any route.")
            .argument("expected", "What must be there now for it to be done: \"absent\", or {\"version\": …}.")
            .argument("why", WHY)
            .made(desk),
        method::<DeleteRoute>("routes_delete", "Delete a route", category, TAKES, At::OwnerItself)
            .about(
                "Deletes a route for every node: calls of that service then go to an actor of its name, or fail. horos_routes_rollback can \
                 bring it back.",
            )
            .argument("service", SERVICE)
            .argument("expected", "The `version` that the route must have for it to be deleted.")
            .argument("why", WHY)
            .made(desk),
    ]
}

fn about_breakers(desk: &Desk) -> Vec<Arc<Definition>> {
    let category = "horos-breakers";
    vec![
        method::<ListBreakers>("breaker_list", "List breakers", category, LOOKS, At::Node(router::NAME))
            .about(
                "Lists one node's circuit breakers: what each does by itself (closed, open, half_open), what people have forced, failures in \
                 a row and the last error. Each node decides by what it sees itself, so ask each node that matters.",
            )
            .argument("after", "Continues a list: the `next` of the page before, [service, key]. Leave it out for the first page.")
            .made(desk),
        method::<ListForced>("breaker_forced", "List forced breakers", category, LOOKS, At::Owner)
            .about("Lists the breakers that people have forced open or closed or have reset, for the whole cluster.")
            .argument("after", "Continues a list: the `next` of the page before, [service, endpoint]. Leave it out for the first page.")
            .made(desk),
        method::<ForceBreaker>("breaker_force", "Force a breaker", category, Behaviour { idempotent: true, ..TAKES }, At::OwnerItself)
            .about(
                "Forces a service's breaker on every node: `open` refuses its calls at once, `closed` lets them through whatever fails, `auto` \
                 leaves it to each node again. Use `open` to take a broken endpoint out of service, and `auto` once it is well.",
            )
            .argument("service", "The service's name.")
            .argument("endpoint", ENDPOINT)
            .argument("state", "`open`, `closed` or `auto`.")
            .argument("expected", "What it must be forced to now for the order to be carried out.")
            .argument("why", WHY)
            .made(desk),
        method::<ResetBreaker>("breaker_reset", "Reset a breaker", category, SETS, At::OwnerItself)
            .about(
                "Has every node forget the failures that it has counted against a service and close the breaker, unless it is forced open. \
                 Use it when the cause is gone and calls should not wait for the next probe.",
            )
            .argument("service", "The service's name.")
            .argument("endpoint", ENDPOINT)
            .argument("why", WHY)
            .made(desk),
    ]
}

fn about_replication(desk: &Desk) -> Vec<Arc<Definition>> {
    let category = "horos-replication";
    let named = "The publication's name, as horos_sync_status shows it; it must be one that this node publishes.";
    let kept = "The publication's name, as horos_sync_status shows it; this node must keep a replica of it.";
    vec![
        replication::status(desk, category),
        method::<StartVerify>("sync_verify", "Verify replicas", category, SETS, At::Publication)
            .about(
                "Begins to compare all that replicas of a publication hold with what they should hold, and heals what differs; called again \
                 with `run` it tells how far that is. Readers are not disturbed, but all of the database is read. Use it when a replica \
                 seems to show other data than its source.",
            )
            .argument(PUBLICATION, named)
            .argument("node", "Only the replica of this node; without it all.")
            .argument("run", "The `run` of an answer before: only tells how far it is. Without it a comparison begins, or the one under way is joined.")
            .made(desk),
        method::<RollbackReplica>("sync_rollback", "Roll a replica back", category, TAKES, At::Replica)
            .about(
                "Has this node's replica serve what it served before its last snapshot, less what has been withdrawn since, and take no more \
                 changes until horos_sync_resume. Use it when a bad release of data has reached users.",
            )
            .argument(REPLICA, kept)
            .made(desk),
        method::<Resume>("sync_resume", "Resume a replica", category, CHANGES, At::Replica)
            .about("Has this node's replica take changes again after horos_sync_rollback; what comes next is a whole snapshot.")
            .argument(REPLICA, kept)
            .made(desk),
    ]
}

/// The method `R` as the tool `name` behind [`PREFIX`].
fn method<R: Request>(name: &'static str, title: &'static str, category: &'static str, behaviour: Behaviour, at: At) -> Method<R> {
    let mut input = schema::input(&schemars::schema_for!(R));
    if let Some((argument, required)) = at.argument() {
        put(&mut input, argument, json!({ "type": "string", "description": OTHER_NODE }));
        if required {
            require(&mut input, argument);
        }
    }
    let (defaults, texts) = (JsonObject::new(), Vec::new());
    Method { name, title, category, about: "", behaviour, at, input, defaults, texts, wrapped: None, request: PhantomData }
}

fn put(input: &mut JsonObject, argument: &str, schema: Value) {
    let properties = input.entry("properties").or_insert_with(|| json!({}));
    properties.as_object_mut().expect("properties are an object").insert(argument.to_owned(), schema);
}

fn require(input: &mut JsonObject, argument: &str) {
    let required = input.entry("required").or_insert_with(|| json!([]));
    required.as_array_mut().expect("what is required is a list").push(argument.into());
}

/// A tool that is being made of a method.
struct Method<R> {
    name: &'static str,
    title: &'static str,
    category: &'static str,
    about: &'static str,
    behaviour: Behaviour,
    at: At,
    input: JsonObject,
    defaults: JsonObject,
    texts: Vec<&'static str>,
    wrapped: Option<&'static str>,
    request: PhantomData<fn() -> R>,
}

impl<R> Method<R>
where
    R: Request,
    R::Error: Told,
{
    fn about(self, about: &'static str) -> Self {
        Self { about, ..self }
    }

    /// Says what an argument is, in place of the comment in the protocol.
    fn argument(mut self, name: &str, about: &str) -> Self {
        let argument = self.input.get_mut("properties").and_then(|properties| properties.get_mut(name)).and_then(Value::as_object_mut);
        argument.expect("the method has it").insert("description".into(), about.into());
        self
    }

    /// Lets an argument be left out that the method must have.
    fn otherwise(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        if let Some(required) = self.input.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|required| required != name);
        }
        let argument = self.input.get_mut("properties").and_then(|properties| properties.get_mut(name)).and_then(Value::as_object_mut);
        argument.expect("the method has it").insert("default".into(), value.clone());
        self.defaults.insert(name.to_owned(), value);
        self
    }

    /// Takes an argument as a JSON object that the method takes as text.
    fn text(mut self, name: &'static str, about: &str) -> Self {
        put(&mut self.input, name, json!({ "type": "object", "description": about }));
        self.texts.push(name);
        self
    }

    /// Calls a reply that is no object so, in one.
    fn wrapped(self, name: &'static str) -> Self {
        Self { wrapped: Some(name), ..self }
    }

    fn made(self, desk: &Desk) -> Arc<Definition> {
        let Self { name, title, category, about, behaviour, at, input, defaults, texts, wrapped, .. } = self;
        let output = schema::output(&schemars::schema_for!(R::Reply), wrapped);
        let ask = Ask::<R> { desk: desk.clone(), at, defaults, texts, wrapped, request: PhantomData };
        tool(Said { name, title, category, about, behaviour }, input, output, Arc::new(ask))
    }
}

/// What is said of a tool beside its schemas.
pub(super) struct Said {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) category: &'static str,
    pub(super) about: &'static str,
    pub(super) behaviour: Behaviour,
}

pub(super) fn tool(said: Said, input: JsonObject, output: JsonObject, run: Arc<dyn Run>) -> Arc<Definition> {
    let Said { name, title, category, about, behaviour } = said;
    let spec = Spec {
        name: format!("{PREFIX}{name}").into(),
        title: Some(title.into()),
        description: about.into(),
        category: category.into(),
        input,
        output: Some(output),
        behaviour,
        group: "default".into(),
        timeout: TIMEOUT,
        version: 1,
    };
    Arc::new(Definition::new(spec, run).unwrap_or_else(|problems| panic!("{name}: a tool of the program's own is wrong: {problems:?}")))
}
