//! A service of one's own, with the whole command line: `cargo run --example stock -- up`, then
//! `… call stock@bo '{"reserve": {"sku": "tea", "quantity": 2}}'`.

use std::collections::HashMap;

use horos_nodes::{
    Opening,
    supervision::{Context, Handle, OpenError, Restart, Service},
    wire::{Never, Role, protocol},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Reserve {
    sku: String,
    quantity: u32,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("only {left} left")]
struct OutOfStock {
    left: u32,
}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Levels {}

protocol! {
    Stock = "stock" v1 {
        1 reserve: Reserve => u32, OutOfStock;
        2 levels: Levels => HashMap<String, u32>;
    }
}

struct Shelf(HashMap<String, u32>);
impl Service for Shelf {
    type Protocol = Stock;
}

impl Handle<Reserve> for Shelf {
    async fn handle(&mut self, wanted: Reserve, _: &Context) -> Result<u32, OutOfStock> {
        let left = self.0.entry(wanted.sku).or_default();
        *left = left.checked_sub(wanted.quantity).ok_or(OutOfStock { left: *left })?;
        Ok(*left)
    }
}

impl Handle<Levels> for Shelf {
    async fn handle(&mut self, _: Levels, _: &Context) -> Result<HashMap<String, u32>, Never> {
        Ok(self.0.clone())
    }
}

fn main() -> std::process::ExitCode {
    let open = |_: Opening| async { Ok::<_, OpenError>(Shelf(HashMap::from([("tea".into(), 40)]))) };
    horos_nodes::main(|n| {
        n.on(Role::Bo).service("stock", Restart::Permanent, open).to(&[Role::Fo, Role::Operator]);
    })
}
