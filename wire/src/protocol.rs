//! Protocols: a name, a version, and the requests that belong to it.
//!
//! [`protocol!`](crate::protocol!) declares one over plain serde types:
//!
//! ```
//! use horos_wire::{protocol, Never};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Serialize, Deserialize, JsonSchema)]
//! pub struct Reserve { pub sku: String, pub quantity: u32 }
//! #[derive(Debug, Serialize, Deserialize, JsonSchema)]
//! pub struct Reserved { pub left: u32 }
//! #[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
//! #[error("only {left} left")]
//! pub struct OutOfStock { pub left: u32 }
//! #[derive(Debug, Serialize, Deserialize, JsonSchema)]
//! pub struct Levels {}
//!
//! protocol! {
//!     /// What a shelf answers.
//!     pub Stock = "stock" v1 {
//!         1 reserve: Reserve => Reserved, OutOfStock;
//!         2 levels: Levels => Vec<(String, u32)>;
//!     }
//! }
//! ```
//!
//! Numbers are never reused and types only grow through new requests: bincode does not describe itself.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub mod bytes;
pub mod control;
pub mod keys;
pub mod node;
pub mod registry;
pub mod routed;
pub mod router;
pub mod sync;
pub mod tools;

/// A protocol: what an actor of some name understands.
pub trait Protocol: Send + Sync + 'static {
    /// The protocol's name, unique in a cluster.
    const NAME: &'static str;
    /// The version; two ends that differ do not talk.
    const VERSION: u16;
    /// The methods, by number.
    fn methods() -> &'static [Method];
}

/// One request type of a [`Protocol`], as the wire and people know it.
#[derive(Clone, Copy)]
pub struct Method {
    /// The number in the frame; 0 is never used.
    pub number: u16,
    /// The name in the JSON form: `{"reserve": {…}}`.
    pub name: &'static str,
    /// JSON Schema of the request.
    pub request: fn() -> schemars::Schema,
    /// JSON Schema of the reply.
    pub reply: fn() -> schemars::Schema,
    /// JSON Schema of the callee's own error.
    pub error: fn() -> schemars::Schema,
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.name)
    }
}

/// A request of a [`Protocol`]; names its reply and its typed error.
pub trait Request: Serialize + DeserializeOwned + JsonSchema + Send + 'static {
    /// The protocol it belongs to.
    type Protocol: Protocol;
    /// What answers it.
    type Reply: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// What the callee says when it will not; [`Never`] when it always will.
    type Error: Serialize + DeserializeOwned + JsonSchema + fmt::Display + fmt::Debug + Send + 'static;
    /// Its number in the protocol.
    const METHOD: u16;
    /// Its name in the JSON form.
    const NAME: &'static str;
}

/// Shows each request type of a protocol to a visitor that knows what to do with all of them.
///
/// This is how a service's handler table is built without `wire` knowing what a handler is: a
/// visitor that implements [`Visit<R>`] only for handled `R` makes a missing handler a compile error.
pub trait Methods<V>: Protocol {
    /// Visits every request, in order of number.
    fn visit(visitor: &mut V);
}

/// Takes one request type of a protocol. See [`Methods`].
pub trait Visit<R: Request> {
    /// Called once for `R`.
    fn visit(&mut self);
}

/// The error of a request that cannot fail: has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl std::error::Error for Never {}

impl JsonSchema for Never {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Never".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        false.into()
    }
}

/// Declares a [`Protocol`] and makes plain types its [`Request`]s. See the [module](mod@crate::protocol).
#[macro_export]
macro_rules! protocol {
    (
        $(#[$doc:meta])*
        $vis:vis $protocol:ident = $name:literal v $version:literal {
            $($body:tt)*
        }
    ) => { compile_error!("write the version as one word: v1") };
    (
        $(#[$doc:meta])*
        $vis:vis $protocol:ident = $name:literal $version:ident {
            $($number:literal $method:ident : $request:ty => $reply:ty $(, $error:ty)?;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        $vis struct $protocol;

        impl $crate::Protocol for $protocol {
            const NAME: &'static str = $name;
            const VERSION: u16 = $crate::protocol::version(stringify!($version));
            fn methods() -> &'static [$crate::protocol::Method] {
                use $crate::macro_support::schemars;
                &[$($crate::protocol::Method {
                    number: $number,
                    name: stringify!($method),
                    request: || schemars::schema_for!($request),
                    reply: || schemars::schema_for!($reply),
                    error: || schemars::schema_for!($crate::protocol!(@error $($error)?)),
                }),*]
            }
        }

        $(impl $crate::Request for $request {
            type Protocol = $protocol;
            type Reply = $reply;
            type Error = $crate::protocol!(@error $($error)?);
            const METHOD: u16 = $number;
            const NAME: &'static str = stringify!($method);
        })*

        impl<V> $crate::Methods<V> for $protocol
        where
            $(V: $crate::Visit<$request>,)*
        {
            fn visit(visitor: &mut V) {
                $(<V as $crate::Visit<$request>>::visit(visitor);)*
            }
        }

        const _: () = $crate::protocol::check_numbers(&[$($number),*]);
    };
    (@error) => { $crate::Never };
    (@error $error:ty) => { $error };
}

/// Reads `v3` as 3, at compile time.
#[doc(hidden)]
pub const fn version(text: &str) -> u16 {
    let bytes = text.as_bytes();
    assert!(bytes.len() > 1 && bytes[0] == b'v', "a version is written v1, v2, …");
    let mut value: u16 = 0;
    let mut i = 1;
    while i < bytes.len() {
        assert!(bytes[i].is_ascii_digit(), "a version is written v1, v2, …");
        value = value * 10 + (bytes[i] - b'0') as u16;
        i += 1;
    }
    value
}

/// Refuses zero, repeated or unsorted method numbers at compile time.
#[doc(hidden)]
pub const fn check_numbers(numbers: &[u16]) {
    let mut i = 0;
    while i < numbers.len() {
        assert!(numbers[i] != 0, "method number 0 is never used");
        assert!(i == 0 || numbers[i - 1] < numbers[i], "method numbers rise and never repeat");
        i += 1;
    }
}
