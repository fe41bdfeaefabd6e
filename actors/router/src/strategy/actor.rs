//! `local` and `quic`: an actor.

use std::sync::Arc;

use horos_wire::{ActorName, Address, policy::RESERVED};

use super::{Strategy, Target};
use crate::config::Config;

/// An actor of the node that calls, and of no other: the endpoint is its name, or nothing where the service has the same.
pub(super) struct Local;

impl Strategy for Local {
    fn check(&self, service: &str, endpoint: &str, _: &Config) -> Result<(), String> {
        name(service, endpoint).map(drop)
    }

    fn open(&self, service: &str, endpoint: &str, _: &Arc<Config>) -> Result<Target, String> {
        Ok(Target::Here(name(service, endpoint)?))
    }
}

/// An actor of another node: the endpoint is an address, `stock@bo-2` or `stock@bo`, or nothing for whichever node offers a service of
/// that name.
pub(super) struct Quic;

impl Strategy for Quic {
    fn check(&self, service: &str, endpoint: &str, _: &Config) -> Result<(), String> {
        address(service, endpoint).map(drop)
    }

    fn open(&self, service: &str, endpoint: &str, _: &Arc<Config>) -> Result<Target, String> {
        Ok(Target::Actor(address(service, endpoint)?))
    }
}

fn name(service: &str, endpoint: &str) -> Result<ActorName, String> {
    let text = if endpoint.is_empty() { service } else { endpoint };
    let name: ActorName = text.parse().map_err(|error| format!("{text:?} names no actor: {error}"))?;
    theirs(&name)?;
    Ok(name)
}

fn address(service: &str, endpoint: &str) -> Result<Address, String> {
    let text = if endpoint.is_empty() { service } else { endpoint };
    let address: Address = text.parse().map_err(|error| format!("{text:?} is no actor's address, such as stock@bo: {error}"))?;
    theirs(&address.name)?;
    Ok(address)
}

/// Refuses the node's own actors: what is called by route is called in the node's name, who may do more there than whoever asks.
fn theirs(name: &ActorName) -> Result<(), String> {
    if name.as_str().starts_with(RESERVED) { Err(format!("{name} is the node's own, and is called by nobody's route")) } else { Ok(()) }
}
