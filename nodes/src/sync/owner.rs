//! The way from an FO to the node that owns the data, over HTTP: writes go on to it, and reads that the replica is not ready for.

use std::sync::Arc;

use horos_dbsync::proxy::{Config as ProxyConfig, ConfigError, Origin, OriginError, Prefix, PrefixError, WriteProxy};
use horos_edge::Client;
use horos_link::tls::{Expected, Tls};
use horos_supervision::ChildSpec;
use horos_wire::{NodeName, Role};
use http::Extensions;

use super::{SyncLayout, waiting};
use crate::config::Config;

/// Where the owner is, and how it proves who it is.
#[derive(Clone)]
pub(crate) struct Owner {
    origin: Option<Origin>,
    tls: Arc<Tls>,
    node: NodeName,
}

/// Why nothing can be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    #[error(
        "{0} is to be passed on to the owner of the data, and nothing says where that is: name it as `owner` in sync.yaml, or among peers.seeds"
    )]
    Nowhere(Box<str>),
    #[error("the owner {0:?}: {1}")]
    Origin(Box<str>, OriginError),
    #[error("the path {0:?}: {1}")]
    Prefix(Box<str>, PrefixError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Owner {
    /// As `layout` says; else the first seed, on the port that it has for everything.
    ///
    /// # Errors
    /// [`OwnerError::Origin`].
    pub(crate) fn of(config: &Config, layout: &SyncLayout, tls: Arc<Tls>) -> Result<Self, OwnerError> {
        let seed = config.peers.iter().find(|seed| seed.role.is_none_or(|role| role == Role::Bo)).map(|seed| {
            let host = &seed.address.host;
            if host.contains(':') { format!("https://[{host}]:{}", seed.address.port) } else { format!("https://{}", seed.address) }
        });
        let origin = layout.owner.clone().or(seed);
        let origin = origin.map(|text| text.parse().map_err(|error| OwnerError::Origin(text.into(), error))).transpose()?;
        Ok(Self { origin, tls, node: config.node.name.clone() })
    }

    /// What passes on whatever comes below `prefix`, under the same path there.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub(crate) fn proxy(&self, prefix: &str) -> Result<WriteProxy, OwnerError> {
        let origin = self.origin.clone().ok_or_else(|| OwnerError::Nowhere(prefix.into()))?;
        let at: Prefix = prefix.parse().map_err(|error| OwnerError::Prefix(prefix.into(), error))?;
        let mut config = ProxyConfig::new(origin, self.node.clone());
        // A certificate of the cluster, and in it the role that owns data.
        config.tls = Some(Arc::new(self.tls.https(Expected::Role(Role::Bo))));
        config.to = at.clone();
        config.at = at;
        config.client = Arc::new(|extensions: &Extensions| extensions.get::<Client>().map(|client| client.0));
        Ok(WriteProxy::new(config)?)
    }
}

/// Looks at the owner again and again, for the status of `proxy`.
pub(crate) fn watch(name: &str, proxy: WriteProxy) -> ChildSpec {
    waiting(name, move || {
        let proxy = proxy.clone();
        async move { match proxy.watch().await {} }
    })
}
