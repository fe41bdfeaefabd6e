//! A service that runs on both nodes of `horos up`, called by its route: a row in `control.db` says which of them answers.

use horos_nodes::{
    Horos, Opening,
    supervision::{Context, Handle, OpenError, Restart, Service},
    wire::{Never, Role, protocol},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Greets somebody.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Greet {
    /// Whom.
    name: String,
}

/// A greeting.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Greeting {
    text: String,
    /// The node that greets.
    by: String,
}

/// Kills the greeter, as a bug in it would: what a breaker is for.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Stumble {}

protocol! {
    Greeter = "greeter" v1 {
        1 greet: Greet => Greeting;
        2 stumble: Stumble => ();
    }
}

struct Polite;

impl Service for Polite {
    type Protocol = Greeter;
}

impl Handle<Greet> for Polite {
    async fn handle(&mut self, greet: Greet, cx: &Context) -> Result<Greeting, Never> {
        Ok(Greeting { text: format!("Hello, {}!", greet.name), by: cx.node().name.to_string() })
    }
}

impl Handle<Stumble> for Polite {
    async fn handle(&mut self, _: Stumble, _: &Context) -> Result<(), Never> {
        panic!("the greeter stumbled, as it was told to")
    }
}

pub(crate) fn register(n: &mut Horos) {
    for role in [Role::Bo, Role::Fo] {
        let open = |_: Opening| async { Ok::<_, OpenError>(Polite) };
        n.on(role).service("greeter", Restart::Permanent, open).to(&[Role::Bo, Role::Fo, Role::Operator]);
        // Those whose route says who may: `gateway`.
        n.on(role).gateway("/services");
    }
}
