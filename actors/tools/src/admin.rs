//! Administration of tools: their rows and rules on the owner of `control.db`, and what each node tells of its own.

mod inbox;
mod node;

pub use node::Node;
