//! The router's strategy `mcp`: a route that leads to somebody's tool.
//!
//! [`Mcp`] is registered in place of the built-in one, which only checks rows. The tool is the row's `tool_name`; without one it is the
//! method's name. What is sent and what comes back is in [`payload`].

pub(crate) mod payload;

use std::{fmt, path::PathBuf, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use horos_router::{
    config::Config,
    strategy::{
        Answer, Failure, Message, Strategy, Target, Transport,
        mcp::{self, Endpoint},
        secret::Secret,
    },
};
use horos_wire::{CallContext, NoEffect, context::MAX_HOPS};

use crate::client::{Client, ClientError, Clients, FromFile, Lifecycle, Options};

/// Calls tools of others. Registered under `mcp`, in place of the built-in one, which only checks rows.
#[derive(Clone)]
pub struct Mcp {
    clients: Clients,
    secrets: PathBuf,
    options: Options,
}

impl fmt::Debug for Mcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.clients.fmt(f)
    }
}

impl Mcp {
    /// By `clients`; what proves this node elsewhere lies in files of `secrets`.
    pub fn new(clients: Clients, secrets: impl Into<PathBuf>) -> Self {
        Self { clients, secrets: secrets.into(), options: Options::default() }
    }

    /// The same, with other options than the defaults; how it is authorized is the rows' to say.
    #[must_use]
    pub fn options(self, options: Options) -> Self {
        Self { options, ..self }
    }
}

impl Strategy for Mcp {
    fn check(&self, _: &str, endpoint: &str, config: &Config) -> Result<(), String> {
        mcp::check(endpoint, config).map(drop)
    }

    fn open(&self, _: &str, endpoint: &str, config: &Arc<Config>) -> Result<Target, String> {
        let endpoint = mcp::check(endpoint, config)?;
        self.clients.programs().check(&endpoint).map_err(|error| error.to_string())?;
        let file = config.authorization.as_ref().map(|authorization| &*authorization.file);
        let mut options = self.options.clone();
        if let Some(file) = file {
            if matches!(endpoint, Endpoint::Node(_)) {
                return Err("authorization: a node of this cluster is shown this one's certificate".to_owned());
            }
            if let Endpoint::Program(name) = &endpoint {
                return Err(format!(
                    "authorization: a program is given what it needs by the node's configuration, mcp.programs.{name}.secrets"
                ));
            }
            Secret::new(&self.secrets, file).read().map_err(|error| error.to_string())?;
            options.authorize = Some(Arc::new(FromFile::new(&self.secrets, file)));
        }
        if matches!(endpoint, Endpoint::Node(_)) {
            options.lifecycle = Lifecycle::Discover;
        }
        let client = self.clients.client(endpoint, file, options).map_err(|error| error.to_string())?;
        Ok(Target::Transport(Arc::new(Tool { client, config: config.clone() })))
    }
}

/// One route's way to one endpoint.
struct Tool {
    client: Client,
    config: Arc<Config>,
}

impl Transport for Tool {
    fn call(&self, message: Message, context: CallContext, until: Instant) -> BoxFuture<'_, Result<Answer, Failure>> {
        Box::pin(async move {
            if context.hops > MAX_HOPS {
                return Err(NoEffect::TooManyHops.into());
            }
            let (tool, arguments) = payload::asked(&message, &self.config)?;
            let meta = payload::meta(&context, until);
            match self.client.call(&tool, arguments, meta, until).await {
                Ok(result) => payload::answer(result),
                Err(error) => Err(failure(error)),
            }
        })
    }
}

fn failure(error: ClientError) -> Failure {
    let retry_after = error.retry_after();
    Failure { error: error.into_call_error(), retry_after }
}
