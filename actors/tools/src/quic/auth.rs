//! Who a peer is: by its certificate, or by what it shows in its first request.

use std::{net::SocketAddr, sync::Arc};

use horos_link::{
    identity::PeerIdentity,
    tls::{PeerRefused, Tls},
};
use horos_wire::principal::Denied;
use jiff::Timestamp;
use quinn::Connection;

use super::{
    close::Ended,
    message::{Refusal, UNAUTHENTICATED},
};
use crate::{Caller, Credential, Transport, Verify, Who};

/// What proved a session's peer; asked again while the session lasts.
#[derive(Clone, Debug)]
pub(super) enum Proof {
    Certificate(Arc<PeerIdentity>),
    Shown(Credential),
}

/// Why nobody is proved.
#[derive(Debug)]
pub(super) enum Unproved {
    /// What was shown proves nothing, or no longer does.
    Denied,
    /// It cannot be told now.
    Unavailable,
}

impl Unproved {
    pub(super) fn refusal(&self) -> Refusal {
        Refusal::new(
            UNAUTHENTICATED,
            match self {
                Self::Denied => {
                    "unauthenticated: show a key or a token of this cluster in _meta under \"horos/key\" of the first request, or come \
                     with a certificate of this cluster"
                }
                Self::Unavailable => "unauthenticated: who you are cannot be checked now; try again later",
            },
        )
    }
}

/// The certificate that the peer has shown, if it has shown one.
///
/// # Errors
/// One that does not hold.
pub(super) fn certificate(tls: &Tls, connection: &Connection) -> Result<Option<Proof>, Ended> {
    match tls.admit(connection, Timestamp::now()) {
        Ok(peer) => Ok(Some(Proof::Certificate(Arc::new(peer)))),
        Err(PeerRefused::NoCertificate) => Ok(None),
        Err(refused) => {
            tracing::debug!(%refused, "refused");
            Err(Ended::UNAUTHENTICATED)
        }
    }
}

/// Who that is, now.
pub(super) async fn who(proof: &Proof, tls: &Tls, verify: &dyn Verify) -> Result<Who, Unproved> {
    match proof {
        Proof::Certificate(peer) => match tls.still_admits(peer, Timestamp::now()) {
            Ok(()) => Ok(Who::Node(Arc::new(peer.id.clone()))),
            Err(refused) => {
                tracing::debug!(%refused, "refused");
                Err(Unproved::Denied)
            }
        },
        Proof::Shown(credential) => verify.verify(credential).await.map(Who::Principal).map_err(|denied| match denied {
            Denied::Unavailable => Unproved::Unavailable,
            _ => Unproved::Denied,
        }),
    }
}

/// The caller of a session's requests.
pub(super) fn caller(who: Who, proof: &Proof, session: &Arc<str>, remote: SocketAddr) -> Arc<Caller> {
    let credential = match proof {
        Proof::Certificate(_) => None,
        Proof::Shown(credential) => Some(credential.clone()),
    };
    Arc::new(Caller { who, credential, transport: Transport::Quic, session: Some(session.clone()), remote: Some(remote) })
}
