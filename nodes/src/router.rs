//! The node's router: the routes in `control.db`, the breakers of their endpoints, and calls by route for people.
//!
//! Laid out before the services, which call by it, and started behind them, under `root/data/router`. What breakers remember is in
//! [`FILE`], which is this node's alone.

mod calls;

use std::{num::NonZeroU32, sync::Arc};

use horos_edge::Conditions;
use horos_egress::{Bounds, Egress, Options as EgressOptions, OptionsError};
use horos_router::{
    Router,
    breaker::{Breakers, store},
    reload, status,
    strategy::{Http, Strategies},
};
use horos_store::{
    watch::{WatchConfig, WatchStartError, Watcher},
    writer::{Writer, WriterConfig},
};
use horos_supervision::{ChildSpec, Exchange, SupervisorHandle, exchange::RegisterError};
use horos_tools::{
    Mcp,
    client::{Clients, Programs, Ways, patient},
};
use tokio::runtime::Handle;

use crate::{config::Config, control, databases::Databases, sync::waiting};

/// What the node remembers of its breakers.
pub(crate) const FILE: &str = "router.db";
/// Where files with secrets lie that routes name, in the data directory.
pub(crate) const SECRETS: &str = "secrets";

/// Why a node has no router.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouterError {
    #[error("the configuration's section egress: {0}")]
    Egress(#[from] OptionsError),
    #[error(transparent)]
    Watch(#[from] WatchStartError),
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// A router, laid out.
pub(crate) struct Laid {
    pub(crate) router: Router,
    /// What is to run.
    pub(crate) children: Vec<ChildSpec>,
    /// The supervisor of the breakers' actors, which is among it.
    pub(crate) breakers: SupervisorHandle,
    /// Clients of other people's MCP servers. They reach this cluster's nodes once they are told of the link.
    pub(crate) clients: Clients,
    /// Their supervisor, which is among it.
    pub(crate) servers: SupervisorHandle,
}

/// The router of a node, attached to its exchange, and what is to run; nothing does before.
///
/// # Errors
/// [`RouterError`].
pub(crate) fn lay(
    config: &Config,
    exchange: &Exchange,
    databases: &Databases,
    conditions: &Conditions,
    strategies: &Strategies,
) -> Result<Laid, RouterError> {
    let out = Egress::new(egress(config))?;
    let secrets = config.data.join(SECRETS);
    // Other people's tools work for long and tell of changes for ever, so they are reached by connections of their own.
    let started = config.mcp.programs.0.iter().map(|(name, program)| (name.clone(), program.started(&config.data, &secrets))).collect();
    let clients = Clients::new(Ways::new(Egress::new(patient(egress(config)))?).starting(Programs::new(started)));
    let strategies = strategies.reaching_out(Http::new(out, &secrets)).in_place("mcp", Arc::new(Mcp::new(clients.clone(), secrets)));
    let writer = Writer::new(WriterConfig::new(databases.options(FILE), store::MIGRATIONS));
    let told = {
        let conditions = conditions.clone();
        // An open breaker is somebody else's trouble: it is shown, and the node is ready all the same.
        Arc::new(move |name: &str, wrong: Option<&str>| match wrong {
            Some(wrong) => conditions.note(name, wrong),
            None => conditions.clear(name),
        })
    };
    let breakers = Breakers::new(Some(writer.clone()), told);
    let router = Router::new(exchange.clone(), strategies, breakers.clone());
    exchange.attach(Arc::new(router.clone()));
    let path = config.data.join(control::FILE);
    let watcher = Watcher::start(WatchConfig::new(&path))?;
    let runtime = Handle::current();
    let by_endpoint = breakers.supervisor();
    let breakers = by_endpoint.handle();
    let by_server = clients.supervisor();
    let servers = by_server.handle();
    let mut children = vec![
        writer.child(&format!("{FILE}:writer")),
        by_endpoint.into_child(),
        by_server.into_child(),
        reload::child(router.clone(), path, watcher.clone()),
        status::child(exchange, &runtime, router.clone())?,
        calls::child(exchange, router.clone())?,
    ];
    if control::is_owner(config) {
        children.push(follow("follow-routes", watcher, databases.clone()));
    }
    Ok(Laid { router, children, breakers, clients, servers })
}

fn egress(config: &Config) -> EgressOptions {
    let section = &config.egress;
    let defaults = Bounds::default();
    let rate = NonZeroU32::new(section.rate_per_host).unwrap_or(defaults.rate_per_host);
    EgressOptions {
        trusted: section.trusted.clone(),
        ca_files: section.authorities.clone(),
        bounds: Bounds {
            in_flight_per_host: section.in_flight_per_host as usize,
            in_flight: defaults.in_flight.max(section.in_flight_per_host as usize),
            rate_per_host: rate,
            burst_per_host: rate.saturating_mul(NonZeroU32::MIN.saturating_add(1)),
            ..defaults
        },
        ..EgressOptions::default()
    }
}

/// Has `control.db` looked at after each commit of this node's own writer, and not only when its time comes.
pub(crate) fn follow(name: &str, watcher: Watcher, databases: Databases) -> ChildSpec {
    waiting(name, move || {
        let (watcher, databases) = (watcher.clone(), databases.clone());
        async move {
            databases.writer(control::FILE).await.nudge_on_commit(&watcher.nudge());
            std::future::pending().await
        }
    })
}
