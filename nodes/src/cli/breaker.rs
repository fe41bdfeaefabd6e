//! `breaker …`: what each node's breakers do by themselves, asked of each, and what people order of them, which the owner of control.db
//! writes down for all.

use clap::{Args, Subcommand};
use horos_wire::{
    Address, NodeName,
    protocol::{
        control::{Force, ForceBreaker, ForcedBreaker, ListForced, MAX_BREAKERS, NAME, PAGE, ResetBreaker},
        router::{BreakerStatus, ListBreakers},
    },
};
use serde::Serialize;
use serde_json::json;

use super::{
    Output, Remote, keys,
    routes::{ask, ask_router, routers},
    run::End,
};
use crate::render;

/// Most breakers shown of one node: what ten thousand routes with a few endpoints have.
const MAX_OF_NODE: usize = 100_000;

/// `breaker …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Breaker {
    /// The breakers of every node in reach, and which are forced
    #[command(after_help = "\
Examples:
  {bin} breaker list
  {bin} breaker list mail
  {bin} breaker list --json | jq '.breakers[] | select(.state == \"open\")'

What a breaker does by itself is each node's own: one node's bad network opens nobody else's. What is forced holds on all.")]
    List {
        /// Of this service only
        service: Option<Box<str>>,
        /// This node only
        #[arg(long, value_name = "NODE")]
        on: Option<NodeName>,
    },
    /// Refuse calls, on every node, until it is closed or left to itself
    #[command(after_help = "\
Examples:
  {bin} breaker open mail --why 'they asked us to stop'
  {bin} breaker open mail http:https://mail.example.org/send
  {bin} breaker open mail --expect auto

Without an endpoint all of the service's. In place of this command: INSERT INTO breakers (service_name, forced) VALUES ('mail', 'open').")]
    Open(Ordered),
    /// Let calls through, on every node, whatever fails
    #[command(
        after_help = "Examples:\n  {bin} breaker close mail --why 'their monitor is wrong'\n  {bin} breaker close mail quic:mail@bo-2"
    )]
    Close(Ordered),
    /// Leave a breaker to itself again
    #[command(after_help = "Examples:\n  {bin} breaker auto mail\n  {bin} breaker auto mail --expect open")]
    Auto(Ordered),
    /// Have every node forget what it has counted, and close it unless it is forced open
    #[command(after_help = "Examples:\n  {bin} breaker reset mail\n  {bin} breaker reset mail quic:mail@bo-2 --why 'it is repaired'")]
    Reset {
        /// The service
        service: Box<str>,
        /// The endpoint, as `breaker list` shows it; without it every one
        endpoint: Option<Box<str>>,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: Option<Box<str>>,
    },
}

/// What is ordered of a breaker.
#[derive(Clone, Debug, Args)]
pub struct Ordered {
    /// The service
    pub service: Box<str>,
    /// The endpoint, as `breaker list` shows it; without it every one
    pub endpoint: Option<Box<str>>,
    /// What it must be now: auto, open or closed
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub expect: Option<Force>,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    pub why: Option<Box<str>>,
}

fn state(text: &str) -> Result<Force, String> {
    [Force::Auto, Force::Open, Force::Closed]
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or_else(|| "auto, open or closed".to_owned())
}

/// A breaker on a node.
#[derive(Debug, Serialize)]
pub struct OnNode {
    /// The node.
    pub node: NodeName,
    /// How it is there.
    #[serde(flatten)]
    pub breaker: BreakerStatus,
}

/// A node that did not say how its breakers are.
#[derive(Debug, Serialize)]
pub struct Silent {
    /// The node.
    pub node: NodeName,
    /// Why.
    pub error: String,
}

pub(crate) async fn breaker<R: Remote>(command: Breaker, node: &mut R, output: &Output) -> Result<(), End> {
    let at = &keys::owner(node, NAME).await?;
    let (order, state) = match command {
        Breaker::List { service, on } => return list(service.as_deref(), on, node, at, output).await,
        Breaker::Reset { service, endpoint, why } => {
            let done = ask(node, at, &ResetBreaker { service, endpoint, why }, output).await?;
            output.data(&done, |style| render::forced(std::slice::from_ref(&done.breaker), style))?;
            output.say(&format!("edit {}: it begins anew on every node within a second", done.edit));
            return Ok(());
        }
        Breaker::Open(order) => (order, Force::Open),
        Breaker::Close(order) => (order, Force::Closed),
        Breaker::Auto(order) => (order, Force::Auto),
    };
    let Ordered { service, endpoint, expect, why } = order;
    let done = ask(node, at, &ForceBreaker { service, endpoint, state, expected: expect, why }, output).await?;
    output.data(&done, |style| render::forced(std::slice::from_ref(&done.breaker), style))?;
    output.say(&format!("edit {}: it holds on every node within a second", done.edit));
    Ok(())
}

async fn list<R: Remote>(service: Option<&str>, on: Option<NodeName>, node: &mut R, at: &Address, output: &Output) -> Result<(), End> {
    let (mut forced, mut after) = (Vec::<ForcedBreaker>::new(), None);
    // A page that is not the last is full.
    for _ in 0..=MAX_BREAKERS as usize / PAGE {
        let page = ask(node, at, &ListForced { after }, output).await?;
        forced.extend(page.breakers);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    forced.retain(|it| service.is_none_or(|service| *it.service == *service));
    let (mut breakers, mut silent) = (Vec::new(), Vec::new());
    for on in routers(node, on).await? {
        let mut after = None;
        let begun = breakers.len();
        loop {
            // One node's silence hides nothing of the others.
            match ask_router(node, &on, &ListBreakers { after }).await {
                Err(error) => {
                    silent.push(Silent { node: on, error: error.to_string() });
                    break;
                }
                Ok(page) => {
                    let empty = page.breakers.is_empty();
                    breakers.extend(page.breakers.into_iter().map(|breaker| OnNode { node: on.clone(), breaker }));
                    after = page.next;
                    if after.is_none() || empty || breakers.len() - begun >= MAX_OF_NODE {
                        break;
                    }
                }
            }
        }
    }
    breakers.retain(|it| service.is_none_or(|service| *it.breaker.service == *service));
    breakers.sort_by(|a, b| (&a.breaker.service, &a.breaker.key, &a.node).cmp(&(&b.breaker.service, &b.breaker.key, &b.node)));
    let value = json!({ "forced": forced, "breakers": breakers, "silent": silent });
    output.data(&value, |style| render::breakers(&forced, &breakers, &silent, style))?;
    Ok(())
}
