//! Keeps a task from looking at what has not changed.
//!
//! A connection's task wakes for each request, and asks each time for everything that may have happened. What seldom
//! happens is behind a gate: its sources wake the gate, and nobody takes their locks until they did.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

#[derive(Debug)]
struct Inner {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Release);
        self.task.wake();
    }
}

/// Lets through who has been woken, and the first.
#[derive(Debug)]
pub(super) struct Gate {
    inner: Arc<Inner>,
    waker: Waker,
}

impl Gate {
    pub(super) fn new() -> Self {
        let inner = Arc::new(Inner { woken: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { waker: inner.clone().into(), inner }
    }

    /// Polls `source`, unless nothing has woken it since it was pending.
    pub(super) fn poll<T>(&self, cx: &Context<'_>, source: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        // In this order: whoever wakes after the look finds the task.
        self.inner.task.register(cx.waker());
        if !self.inner.woken.swap(false, AcqRel) {
            return Poll::Pending;
        }
        let polled = source(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            // There may be more.
            self.inner.woken.store(true, Release);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_asked_when_it_was_woken_or_had_more() {
        let gate = Gate::new();
        let cx = Context::from_waker(Waker::noop());
        let mut source = None;
        assert!(gate.poll(&cx, |_| Poll::Ready(())).is_ready());
        let asked = gate.poll(&cx, |cx| {
            source = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(asked.is_pending() && source.is_some());
        assert!(gate.poll(&cx, |_| Poll::Ready(())).is_pending(), "asked though nothing happened");
        source.unwrap().wake();
        assert!(gate.poll(&cx, |_| Poll::Ready(())).is_ready());
    }
}
