//! The control stream: what two nodes say about their session rather than through it.
//!
//! Each frame is a `u32` length and one bincode [`Control`]. Appended to, never reordered. The first
//! frame each way is [`Control::Hello`]; anything else before it closes the session.

use serde::{Deserialize, Serialize};

use crate::{
    ActorName, Incarnation, NoEffect, NodeId,
    codec::{self, Format},
};

/// Oldest version of this protocol that this release speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest version of this protocol that this release speaks.
pub const VERSION_MAX: u16 = 1;
/// Longest control frame in bytes: a deny list of 1 MiB fits, and so do [`Offers`] of 512 names.
pub const MAX_CONTROL_FRAME: usize = 1024 * 1024 + 64 * 1024;
/// Most names that a node may offer to its peers.
pub const MAX_OFFERS: usize = 512;
/// Most addresses that a node may say it can be dialled at: it would be dialled at each of them when it is lost.
pub const MAX_ADDRESSES: usize = 8;
/// Longest [`Hello::release`] in bytes.
pub const MAX_RELEASE: usize = 256;
/// Most names that a peer may have bound at once.
pub const MAX_BINDINGS: usize = 4096;
/// Most watches that a peer may have set at once.
pub const MAX_WATCHES: usize = 4096;

/// A control frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Who this is and what it can do; the first frame each way.
    Hello(Hello),
    /// What may be called here by whoever reads this; again at each change, always whole.
    Offers(Offers),
    /// Asks for the number of a name.
    Bind(Bind),
    /// Answers [`Control::Bind`].
    Bound {
        /// The number in the question.
        binding: u32,
        /// The target's number, or why there is none.
        outcome: Result<Bound, NoEffect>,
    },
    /// Asks to be told when a bound target dies.
    Watch {
        /// The asker's number for this watch.
        watch: u32,
        /// The target.
        target: u32,
    },
    /// Takes back a [`Control::Watch`].
    Unwatch {
        /// The number in the watch.
        watch: u32,
    },
    /// A watched target died.
    Down {
        /// The number in the watch.
        watch: u32,
        /// Why, as far as the watcher may know.
        reason: DownReason,
    },
    /// Asks for a sign of life.
    Heartbeat {
        /// Rises by one.
        sequence: u64,
    },
    /// Answers [`Control::Heartbeat`]; sent by a supervised actor, never by whoever reads the stream.
    HeartbeatAck {
        /// The number in the question.
        sequence: u64,
    },
    /// Gives back room for casts to a target.
    Grant {
        /// The target.
        target: u32,
        /// How much, in the units of [`crate::session::cost`].
        units: u32,
    },
    /// The caller has given up on a call.
    Cancel {
        /// The call.
        correlation: u64,
    },
    /// The sender takes no new work and will close when what is in flight is done.
    GoAway,
    /// A signed deny list, as the authority wrote it. Whoever finds it newer than its own puts it in force and passes it on.
    DenyList(Box<str>),
}

/// Who a node is and what it can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version spoken.
    pub version_min: u16,
    /// Newest version spoken.
    pub version_max: u16,
    /// Bits for what may be used if both ends set them; none yet.
    pub features: u64,
    /// Must be what the certificate says.
    pub node: NodeId,
    /// Which life.
    pub incarnation: Incarnation,
    /// The release, for people; at most [`MAX_RELEASE`] bytes.
    pub release: Box<str>,
    /// Where the sender can be dialled, at most [`MAX_ADDRESSES`]; empty when it cannot.
    pub addresses: Vec<std::net::SocketAddr>,
}

/// What a node offers to this peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offers {
    /// Names with their protocols, at most [`MAX_OFFERS`].
    pub names: Vec<Offer>,
    /// Whether it takes work.
    pub ready: bool,
}

/// A name that a node offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The actor.
    pub name: ActorName,
    /// Its protocol.
    pub protocol: Box<str>,
    /// Its protocol's version.
    pub version: u16,
}

/// Asks for the number of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The asker's number for this question.
    pub binding: u32,
    /// The actor.
    pub name: ActorName,
    /// The protocol that the asker was compiled with; none for one that speaks JSON.
    pub protocol: Option<(Box<str>, u16)>,
}

/// A bound name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// What stands in frames from now on.
    pub target: u32,
    /// The protocol's name.
    pub protocol: Box<str>,
    /// The protocol's version.
    pub version: u16,
    /// The methods with their numbers, for an asker that speaks JSON; else empty.
    pub methods: Vec<(u16, Box<str>)>,
}

/// Why a watched actor is no more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DownReason {
    /// It died, and its supervisor decides what follows.
    Died,
    /// It was stopped in good order.
    Stopped,
    /// Its node is gone or out of reach.
    NodeDown,
    /// Its node came back with another incarnation.
    NodeRestarted,
    /// There is no such actor.
    NoSuchActor,
}

impl std::fmt::Display for DownReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Died => "it died",
            Self::Stopped => "it was stopped",
            Self::NodeDown => "its node is down",
            Self::NodeRestarted => "its node was restarted",
            Self::NoSuchActor => "there is no such actor",
        })
    }
}

/// Why bytes are no control frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Longer than [`MAX_CONTROL_FRAME`].
    #[error("a control frame of {0} bytes, more than {MAX_CONTROL_FRAME}")]
    TooLong(usize),
    /// Not a [`Control`].
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
}

/// Appends a control frame to `into`.
///
/// # Errors
/// [`ControlError`] when the frame is over its limit.
pub fn write(into: &mut Vec<u8>, control: &Control) -> Result<(), ControlError> {
    let start = into.len();
    into.extend_from_slice(&[0; 4]);
    let written = codec::encode(Format::Bincode, control, into).map_err(ControlError::from).and_then(|()| {
        let length = into.len() - start - 4;
        if length > MAX_CONTROL_FRAME { Err(ControlError::TooLong(length)) } else { Ok(length) }
    });
    match written {
        Ok(length) => {
            into[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
            Ok(())
        }
        Err(error) => {
            into.truncate(start);
            Err(error)
        }
    }
}

/// Reads the control frame at the start of `input`, and how many bytes it took; `None` when it is not all there yet.
///
/// # Errors
/// [`ControlError`]; a length over the limit is refused as soon as it can be read.
pub fn read(input: &[u8]) -> Result<Option<(Control, usize)>, ControlError> {
    let Some((length, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_CONTROL_FRAME {
        return Err(ControlError::TooLong(length));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    Ok(Some((codec::decode(Format::Bincode, body)?, 4 + length)))
}

/// Why a session was closed: the QUIC application error code. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u32)]
pub enum Close {
    /// All is done.
    #[error("closed")]
    Done = 0,
    /// The node is stopping.
    #[error("the node is stopping")]
    GoingAway = 1,
    /// Bytes that are no frame, or a frame out of turn.
    #[error("broke the protocol")]
    Protocol = 2,
    /// No common version.
    #[error("no common version")]
    Version = 3,
    /// No certificate, or none of this cluster, or not the node that was dialled.
    #[error("not a node of this cluster")]
    Identity = 4,
    /// The certificate is on the deny list.
    #[error("the certificate is revoked")]
    Revoked = 5,
    /// Another connection to the same node stays.
    #[error("another connection stays")]
    Duplicate = 6,
    /// No heartbeat was answered in time.
    #[error("no heartbeat was answered")]
    Silent = 7,
    /// An older life of a node that has started again.
    #[error("a later life of the node is connected")]
    Stale = 8,
    /// The peer asked for more than its limits.
    #[error("over the limit")]
    Limit = 9,
    /// The ALPN is none that the endpoint serves to such a peer.
    #[error("protocol not served")]
    Alpn = 10,
}

impl Close {
    /// The close code of that number.
    pub fn from_code(code: u64) -> Option<Self> {
        [
            Self::Done,
            Self::GoingAway,
            Self::Protocol,
            Self::Version,
            Self::Identity,
            Self::Revoked,
            Self::Duplicate,
            Self::Silent,
            Self::Stale,
            Self::Limit,
            Self::Alpn,
        ]
        .into_iter()
        .find(|close| *close as u64 == code)
    }
}
