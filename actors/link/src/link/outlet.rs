//! Sending through a link: a name bound on the peer, and how calls and casts to it are written.

use std::{
    future::ready,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_supervision::exchange::{Answering, Cancel, Outgoing, Outlet, Sent};
use horos_wire::{
    Format, NoEffect, NodeName,
    codec::{CodecError, MAX_BODY},
    control::DownReason,
    frame::{self, Kind, LargeBody, MAX_SMALL_BODY, Request},
    session::cost,
};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::{Link, SCRATCH, eager};
use crate::{
    out::{Eager, NotTaken},
    streams,
};

/// A name bound on the peer.
pub(super) struct BoundTarget {
    pub(super) link: Arc<Link>,
    pub(super) target: u32,
    pub(super) window: Arc<Semaphore>,
    pub(super) methods: Vec<(u16, Box<str>)>,
}

/// A message encoded for the wire.
enum Encoded {
    /// In the thread's scratch.
    Small { body: usize },
    /// On its own.
    Large { body: Bytes },
}

impl BoundTarget {
    /// Encodes a message into the scratch; a large body is taken out again.
    fn encode(&self, scratch: &mut Vec<u8>, kind: Kind, correlation: u64, message: &mut Outgoing<'_>) -> Result<Encoded, NoEffect> {
        scratch.clear();
        let remaining_ms = message.context.deadline.map(|deadline| remaining_ms(deadline.saturating_duration_since(message.now)));
        let request = Request {
            kind,
            format: message.format,
            method: message.method,
            target: self.target,
            correlation,
            remaining_ms,
            context: message.context,
        };
        let mut body = 0;
        frame::write_request::<CodecError>(scratch, request, false, |into| {
            let start = into.len();
            (message.encode)(into)?;
            body = into.len() - start;
            Ok(())
        })
        .map_err(|error| match error {
            CodecError::TooLarge(size) => {
                NoEffect::TooLarge(format!("{size} bytes, more than {MAX_BODY}; send it as a bulk stream").into())
            }
            error => NoEffect::Malformed(error.to_string().into()),
        })?;
        if body <= MAX_SMALL_BODY {
            return Ok(Encoded::Small { body });
        }
        let body = Bytes::copy_from_slice(&scratch[scratch.len() - body..]);
        // A burst's memory is not kept for ever.
        scratch.clear();
        scratch.shrink_to(4 * MAX_SMALL_BODY);
        Ok(Encoded::Large { body })
    }

    /// Writes a message whose body takes a stream of its own.
    async fn send_large(
        link: Arc<Link>,
        target: u32,
        head: LargeHead,
        body: Bytes,
        room: Option<SemaphorePermit<'_>>,
    ) -> Result<(), NoEffect> {
        let lost = |_| NoEffect::NoRoute(link.node.as_str().into());
        // The stream first: once the placeholder is out, only the stream's end, good or bad, lets the target go on.
        let mut stream = streams::open(&link.quinn, streams::Type::Body).await.map_err(lost)?;
        let id = stream.id().index();
        let length = body.len() as u32;
        let mut placeholder = Vec::with_capacity(64);
        let request = Request {
            kind: head.kind,
            format: head.format,
            method: head.method,
            target,
            correlation: head.correlation,
            remaining_ms: head.context.deadline.map(|deadline| remaining_ms(deadline.saturating_duration_since(Instant::now()))),
            context: &head.context,
        };
        frame::write_request::<CodecError>(&mut placeholder, request, true, |into| {
            into.extend_from_slice(&LargeBody { id, length }.to_bytes());
            Ok(())
        })
        .map_err(|error| NoEffect::Malformed(error.to_string().into()))?;
        // Given up half way, the stream is reset and not ended, so that the peer knows that the body is not whole.
        let mut stream = streams::ResetOnDrop::new(&mut stream);
        if !link.out.send_waiting(&placeholder).await {
            return Err(NoEffect::NoRoute(link.node.as_str().into()));
        }
        // From here on the peer gives the room back, whole body or not.
        if let Some(room) = room {
            room.forget();
        }
        stream.write_all(&body).await.map_err(|_| NoEffect::NoRoute(link.node.as_str().into()))?;
        stream.finish();
        Ok(())
    }
}

/// What a large message says besides its body.
struct LargeHead {
    kind: Kind,
    format: Format,
    method: u16,
    correlation: u64,
    context: horos_wire::CallContext,
}

/// Rounded up: a caller's last millisecond is still its own.
fn remaining_ms(remaining: Duration) -> u32 {
    let millis = remaining.as_secs().saturating_mul(1_000).saturating_add(remaining.subsec_nanos().div_ceil(1_000_000).into());
    u32::try_from(millis).unwrap_or(u32::MAX)
}

impl Outlet for BoundTarget {
    fn node(&self) -> &NodeName {
        &self.link.node
    }

    fn is_open(&self) -> bool {
        self.link.takes_work()
    }

    fn methods(&self) -> &[(u16, Box<str>)] {
        &self.methods
    }

    fn call(&self, mut message: Outgoing<'_>) -> Result<Sent<Answering>, NoEffect> {
        let link = &self.link;
        if !link.takes_work() {
            return Err(link.no_route());
        }
        let (waiter, answer) = oneshot::channel();
        let (correlation, in_flight) = {
            let mut calls = link.calls.lock();
            let correlation = calls.insert(waiter).ok_or_else(|| NoEffect::Overloaded("too many calls in flight on this link".into()))?;
            (correlation, calls.len())
        };
        if link.is_closed() {
            // Closed between the first look and the registration; whoever closed it did not see this call.
            link.calls.lock().take(correlation);
            return Err(link.no_route());
        }
        let answering = Answering { answer, cancel: Cancel::new(link.clone(), correlation) };
        SCRATCH.with_borrow_mut(|scratch| match self.encode(scratch, Kind::Call, correlation, &mut message) {
            Err(why) => {
                link.calls.lock().take(correlation);
                Err(why)
            }
            Ok(Encoded::Small { .. }) => match link.out.send(scratch, eager(in_flight)) {
                Ok(()) => Ok(Sent::Now(answering)),
                Err(NotTaken::Closed) => {
                    link.calls.lock().take(correlation);
                    Err(link.no_route())
                }
                Err(NotTaken::Full) => {
                    let (link, frame) = (link.clone(), scratch.clone());
                    Ok(Sent::Later(Box::pin(async move {
                        if link.out.send_waiting(&frame).await { Ok(answering) } else { Err(link.no_route()) }
                    })))
                }
            },
            Ok(Encoded::Large { body }) => {
                let (link, target) = (link.clone(), self.target);
                let head = LargeHead {
                    kind: Kind::Call,
                    format: message.format,
                    method: message.method,
                    correlation,
                    context: message.context.clone(),
                };
                Ok(Sent::Later(Box::pin(async move {
                    Self::send_large(link, target, head, body, None).await?;
                    Ok(answering)
                })))
            }
        })
    }

    fn cast(&self, mut message: Outgoing<'_>) -> Result<Sent<()>, NoEffect> {
        let link = &self.link;
        if !link.takes_work() {
            return Err(link.no_route());
        }
        SCRATCH.with_borrow_mut(|scratch| match self.encode(scratch, Kind::Cast, 0, &mut message)? {
            Encoded::Small { body } => {
                let units = cost(body);
                if let Ok(room) = self.window.try_acquire_many(units) {
                    match link.out.send(scratch, Eager::No) {
                        Ok(()) => {
                            room.forget();
                            return Ok(Sent::Now(()));
                        }
                        Err(NotTaken::Closed) => return Err(link.no_route()),
                        Err(NotTaken::Full) => {}
                    }
                }
                let (link, window, frame) = (link.clone(), self.window.clone(), scratch.clone());
                Ok(Sent::Later(Box::pin(async move {
                    let room = window.acquire_many(units).await.map_err(|_| link.no_route())?;
                    if !link.out.send_waiting(&frame).await {
                        return Err(link.no_route());
                    }
                    room.forget();
                    Ok(())
                })))
            }
            Encoded::Large { body } => {
                let (link, window, target) = (link.clone(), self.window.clone(), self.target);
                let head = LargeHead {
                    kind: Kind::Cast,
                    format: message.format,
                    method: message.method,
                    correlation: 0,
                    context: message.context.clone(),
                };
                Ok(Sent::Later(Box::pin(async move {
                    let room = window.acquire_many(cost(body.len())).await.map_err(|_| link.no_route())?;
                    Self::send_large(link.clone(), target, head, body, Some(room)).await
                })))
            }
        })
    }

    fn watch(&self) -> Result<BoxFuture<'static, DownReason>, NoEffect> {
        let (sender, down) = oneshot::channel();
        let asked = self.link.with_session(|session| {
            let asked = session.watch(self.target)?;
            // Registered under the session's lock, so that the answer cannot come first.
            if let Some(watch) = asked {
                self.link.watching.lock().insert(watch, sender);
            }
            Ok(asked)
        });
        let Ok(asked) = asked else { return Ok(Box::pin(ready(DownReason::NodeDown))) };
        let watch = asked.ok_or_else(|| NoEffect::Overloaded(format!("too many watches on {}", self.link.node).into()))?;
        // Made here and not below: what is dropped before its first poll has run nothing.
        let unwatch = Unwatch { link: self.link.clone(), watch };
        Ok(Box::pin(async move {
            if unwatch.link.is_closed() {
                return DownReason::NodeDown;
            }
            down.await.unwrap_or(DownReason::NodeDown)
        }))
    }
}

/// Takes a watch back when whoever set it no longer waits.
struct Unwatch {
    link: Arc<Link>,
    watch: u32,
}

impl Drop for Unwatch {
    fn drop(&mut self) {
        if self.link.watching.lock().remove(&self.watch).is_some() && !self.link.is_closed() {
            let _ = self.link.with_session(|session| session.unwatch(self.watch));
        }
    }
}
