//! Names and addresses: who is called, and on which node.
//!
//! An [`Address`] is what a user writes (`stock`, `stock@bo-1`, `stock@bo`); a [`NodeId`] is what a
//! certificate proves (`spiffe://cluster/role/node`).

use std::{fmt, str::FromStr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest name of an actor, a node or a cluster, in bytes: a DNS label, so that a name can become a host name.
pub const MAX_NAME: usize = 63;

/// Why a text is not a name, an address or a node identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The text is empty where a name must stand.
    #[error("a name is missing in {0:?}")]
    Empty(Box<str>),
    /// Longer than [`MAX_NAME`].
    #[error("{0:?} is longer than {MAX_NAME} bytes")]
    TooLong(Box<str>),
    /// A character outside `a-z 0-9 - _ .`, or a first character that is no letter or digit.
    #[error("{0:?} is no name: use a-z, 0-9, '-', '_' and '.', starting with a letter or a digit")]
    Character(Box<str>),
    /// Not one of the four roles.
    #[error("{0:?} is no role: use bo, fo, operator or viewer")]
    Role(Box<str>),
    /// A node may not be called like a role: `x@bo` would mean two things.
    #[error("{0:?} is a role and cannot name a node")]
    Reserved(Box<str>),
    /// Not `spiffe://cluster/role/node`.
    #[error("{0:?} is no node identity: expected spiffe://cluster/role/node")]
    Identity(Box<str>),
}

fn checked(text: &str) -> Result<Arc<str>, AddressError> {
    if text.is_empty() {
        return Err(AddressError::Empty(text.into()));
    }
    if text.len() > MAX_NAME {
        // Cut, so that a hostile megabyte does not travel on inside the error.
        return Err(AddressError::TooLong(text.chars().take(MAX_NAME).collect()));
    }
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !plain(&bytes[0]) || !bytes.iter().all(|b| plain(b) || matches!(b, b'-' | b'_' | b'.')) {
        return Err(AddressError::Character(text.into()));
    }
    Ok(text.into())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and makes it a name.
            ///
            /// # Errors
            /// [`AddressError`] says which rule the text breaks.
            pub fn new(text: &str) -> Result<Self, AddressError> {
                text.parse()
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = AddressError;
            fn try_from(text: String) -> Result<Self, AddressError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// The name of an actor, unique on its node.
    ActorName
}
name! {
    /// The name of a node, unique in its cluster and never that of a role.
    NodeName
}
name! {
    /// The name of a cluster.
    ClusterName
}

impl FromStr for ActorName {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        checked(text).map(Self)
    }
}

impl FromStr for ClusterName {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        checked(text).map(Self)
    }
}

impl FromStr for NodeName {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.parse::<Role>().is_ok() {
            return Err(AddressError::Reserved(text.into()));
        }
        checked(text).map(Self)
    }
}

/// What a certificate's holder is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Back office: owns data and writes it.
    Bo,
    /// Front office: faces the public.
    Fo,
    /// A person or a script that may change things.
    Operator,
    /// A person or a script that may only look.
    Viewer,
}

impl Role {
    /// Every role, in the order of the policy's columns.
    pub const ALL: [Self; 4] = [Self::Bo, Self::Fo, Self::Operator, Self::Viewer];

    /// The role as it stands in addresses and certificates.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bo => "bo",
            Self::Fo => "fo",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }

    /// Whether this role runs actors (operators and viewers only call).
    pub const fn is_node(self) -> bool {
        matches!(self, Self::Bo | Self::Fo)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| AddressError::Role(text.chars().take(MAX_NAME).collect()))
    }
}

/// Where an [`Address`] may be answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `name`: this node if it offers the name, else any node that does.
    Any,
    /// `name@node`: that node only.
    Node(NodeName),
    /// `name@role`: any node of that role; calls spread over them.
    Role(Role),
}

/// The address of an actor: `name`, `name@node` or `name@role`.
///
/// ```
/// use horos_wire::{Address, Role, Scope};
/// let address: Address = "stock@bo".parse()?;
/// assert_eq!(address.scope, Scope::Role(Role::Bo));
/// # Ok::<_, horos_wire::address::AddressError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Address {
    /// The actor's name.
    pub name: ActorName,
    /// Where it may be.
    pub scope: Scope,
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some((name, place)) = text.split_once('@') else {
            return Ok(Self { name: text.parse()?, scope: Scope::Any });
        };
        let scope = match place.parse::<Role>() {
            Ok(role) => Scope::Role(role),
            Err(_) => Scope::Node(place.parse()?),
        };
        Ok(Self { name: name.parse()?, scope })
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::Any => write!(f, "{}", self.name),
            Scope::Node(node) => write!(f, "{}@{node}", self.name),
            Scope::Role(role) => write!(f, "{}@{role}", self.name),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// Which of a node's lives this is: drawn at random when the node starts, so a returned node with
/// another incarnation is known to have lost its memory.
///
/// In JSON it is text, sixteen hexadecimal digits: many readers of JSON round whole numbers beyond 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

impl Serialize for Incarnation {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_u64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(Self);
        }
        let text = String::deserialize(deserializer)?;
        let plain = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let value = if plain { u64::from_str_radix(&text, 16).ok() } else { None };
        value.map(Self).ok_or_else(|| serde::de::Error::custom("expected 16 lower-case hexadecimal digits"))
    }
}

impl JsonSchema for Incarnation {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Incarnation".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{16}$" })
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Who a certificate says its holder is. Written `spiffe://cluster/role/node` in its URI SAN.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct NodeId {
    /// The cluster; two clusters never talk.
    pub cluster: ClusterName,
    /// What the holder may do.
    pub role: Role,
    /// The holder's name.
    pub name: NodeName,
}

impl NodeId {
    /// The identity as the URI that stands in the certificate.
    pub fn to_uri(&self) -> String {
        format!("spiffe://{}/{}/{}", self.cluster, self.role, self.name)
    }

    /// Reads the identity from a certificate's URI.
    ///
    /// # Errors
    /// [`AddressError::Identity`] for another shape, else what is wrong with the part.
    pub fn from_uri(uri: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::Identity(uri.chars().take(4 * MAX_NAME).collect());
        let mut parts = uri.strip_prefix("spiffe://").ok_or_else(malformed)?.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(cluster), Some(role), Some(name), None) => {
                Ok(Self { cluster: cluster.parse()?, role: role.parse()?, name: name.parse()? })
            }
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_written() {
        for text in ["stock", "stock@bo", "stock@fo", "stock@bo-1", "horos.node@fo-3"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_rule_it_breaks() {
        assert_eq!("".parse::<Address>(), Err(AddressError::Empty("".into())));
        assert_eq!("@bo".parse::<Address>(), Err(AddressError::Empty("".into())));
        assert!(matches!("a b".parse::<Address>(), Err(AddressError::Character(_))));
        assert!(matches!("-a".parse::<Address>(), Err(AddressError::Character(_))));
        assert!(matches!("a@b@c".parse::<Address>(), Err(AddressError::Character(_))));
        assert!(matches!("x".repeat(64).parse::<Address>(), Err(AddressError::TooLong(_))));
    }

    #[test]
    fn a_node_cannot_be_named_like_a_role() {
        assert_eq!("bo".parse::<NodeName>(), Err(AddressError::Reserved("bo".into())));
    }

    #[test]
    fn an_identity_reads_back_from_its_uri_and_nothing_else_does() {
        let id = NodeId { cluster: "shop".parse().unwrap(), role: Role::Fo, name: "fo-1".parse().unwrap() };
        assert_eq!(id.to_uri(), "spiffe://shop/fo/fo-1");
        assert_eq!(NodeId::from_uri(&id.to_uri()).unwrap(), id);
        for uri in ["spiffe://shop/fo", "spiffe://shop/fo/a/b", "https://shop/fo/a", "spiffe://shop/boss/a", "spiffe://shop/fo/bo"] {
            assert!(NodeId::from_uri(uri).is_err(), "{uri}");
        }
    }
}
