//! Keys and tokens on this node: who may come in from outside, and how the port asks.
//!
//! The owner of `control.db` runs the service `horos.keys`, on that file; every other node mirrors what it knows into its `keys.db` and
//! answers from that. Both stand under `root/data/keys`, behind the databases. The port and the handlers ask the same [`Verifier`].

use std::sync::Arc;

use futures_util::future::BoxFuture;
use horos_edge::{Authenticator, Conditions, Credential};
use horos_identity::{Clock, KEYS_MIGRATIONS, Keys, KeysConfig, KeysParts, Mirror, NAME, Source, Verifier};
use horos_store::migrations::Migrations;
use horos_supervision::{ChildSpec, Context, Exchange, OpenError, ServiceSpec, StartError, Vitals, exchange::RegisterError, service};
use horos_wire::{
    NodeName,
    principal::{Denied, Principal},
    tree::Kind,
};
use tokio::runtime::Handle;

use crate::{
    config::Config,
    control::{self, FILE, KEYS_FILE, READERS},
    databases::Databases,
};

/// The condition at `/readyz` that tells of a replica that is not kept up to date.
const CONDITION: &str = "keys";
/// A mirror that makes no progress for so long is stuck: it asks four times a second, for a second at most.
const STUCK_AFTER: std::time::Duration = std::time::Duration::from_secs(10);

/// What a node has of keys.
pub(crate) struct NodeKeys {
    /// What the port asks.
    pub(crate) authenticator: Arc<dyn Authenticator>,
    /// What whoever else comes in from outside is proved by.
    pub(crate) verifier: Verifier,
    /// What is to be supervised.
    pub(crate) children: Vec<ChildSpec>,
}

/// Lays out keys and tokens for a node. Handlers that are called with a token have it checked from now on.
///
/// Both actors run on the runtime that calls this, the node's own: no service of a user's holds up a revocation.
///
/// # Errors
/// [`RegisterError`] when a service has taken the name.
pub(crate) fn lay(config: &Config, exchange: &Exchange, databases: &Databases, conditions: &Conditions) -> Result<NodeKeys, RegisterError> {
    let clock = Clock::system();
    let owner = (!control::is_owner(config)).then(|| config.control.owner.clone());
    let verifier = Verifier::new(&databases.options(tables(owner.as_ref()).0), clock.clone());
    exchange.prove_users_with(Arc::new(verifier.clone()));
    let mut children = Vec::new();
    if owner.is_none() {
        let (databases, data) = (databases.clone(), config.data.clone());
        let open = move |_: Context| {
            let (databases, data, clock) = (databases.clone(), data.clone(), clock.clone());
            async move {
                let control = databases.open_with(FILE, control::MIGRATIONS, READERS).await?;
                let parts = KeysParts { writer: control.writer, readers: control.readers, data, clock, config: KeysConfig::default() };
                Keys::open(parts).await
            }
        };
        children.push(service(exchange, &Handle::current(), ServiceSpec::new(NAME.parse().expect("a literal name")), open)?);
    }
    children.push(mirror(exchange, owner, databases, &verifier, conditions));
    Ok(NodeKeys { authenticator: Arc::new(Port(verifier.clone())), verifier, children })
}

/// The database that has the tables of keys here, and all that is in it; `owner` is none on the owner itself.
fn tables(owner: Option<&NodeName>) -> (&'static str, Migrations) {
    match owner {
        None => (FILE, control::MIGRATIONS),
        Some(_) => (KEYS_FILE, Migrations::new(KEYS_MIGRATIONS)),
    }
}

/// Keeps the tables up to date. The database is opened at each start, because a store that was started anew has to be asked
/// again for its writer and readers.
fn mirror(exchange: &Exchange, owner: Option<NodeName>, databases: &Databases, verifier: &Verifier, conditions: &Conditions) -> ChildSpec {
    let context = Context::new(exchange.clone(), "keys-mirror");
    let (databases, verifier, conditions) = (databases.clone(), verifier.clone(), conditions.clone());
    let vitals = Vitals::new("keys-mirror", Kind::Worker, STUCK_AFTER);
    ChildSpec::new(vitals, move |start| {
        let (context, databases, verifier, owner) = (context.clone(), databases.clone(), verifier.clone(), owner.clone());
        let conditions = conditions.clone();
        async move {
            let (file, migrations) = tables(owner.as_ref());
            let opened = databases.open_with(file, migrations, READERS).await;
            let control = opened.map_err(|error: OpenError| StartError::new(error.to_string()))?;
            let source = match owner {
                None => Source::Own(control.readers),
                Some(node) => Source::Owner { node, writer: control.writer, readers: control.readers },
            };
            let told = move |wrong: Option<&str>| match wrong {
                // The last replica serves; who looks at the node should know.
                Some(wrong) => conditions.note(CONDITION, wrong),
                None => conditions.clear(CONDITION),
            };
            let child = Mirror::new(context, source, verifier, Arc::new(told)).child();
            (child.start)(start).await
        }
    })
}

/// The port's way to ask.
struct Port(Verifier);

fn text(credential: &Credential) -> &str {
    match credential {
        Credential::Key(text) | Credential::Token(text) => text,
    }
}

impl Authenticator for Port {
    fn recall(&self, credential: &Credential) -> Option<Result<Arc<Principal>, Denied>> {
        self.0.recall(text(credential))
    }

    fn verify(&self, credential: Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        self.0.verify(text(&credential))
    }

    fn wrong_scope(&self, principal: &Principal) {
        self.0.wrong_scope(principal);
    }
}
