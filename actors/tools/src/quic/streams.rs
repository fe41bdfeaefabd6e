//! The streams of a session: the first, and those of single requests.

use std::{sync::Arc, time::Duration};

use quinn::{RecvStream, SendStream};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::{
    MAX_MESSAGE, Reset,
    close::Ended,
    lines::{LineError, Lines},
    message::{BUSY, INVALID, PARSE, Refusal},
    observed::{Counters, count},
    outbox::{self, Failed, Out},
    session::{NotTaken, Session, Taken},
    table::Way,
};

/// Lines of one request that wait to be written.
const QUEUE: usize = 16;
/// How long a stream waits for the turn to read a large message before it is told to come again: while it waits, what it has sent holds
/// up the connection's window.
const PATIENCE: Duration = Duration::from_secs(5);
/// Streams that were not agreed on and are refused one by one, before the connection is closed.
const UNAGREED: u32 = 4096;

/// Why the reading of the first stream ended.
pub(super) type First = Result<(), (Option<Refusal>, Ended)>;

/// Reads the first stream until it ends; `line` is what came first.
pub(super) async fn first(session: &Arc<Session>, lines: &mut Lines, line: bytes::Bytes) -> First {
    lines.allow(MAX_MESSAGE, session.turns(session.shared.options.times.line));
    let mut line = Ok(Some(line));
    loop {
        match line {
            Ok(Some(line)) => match session.take(&line, Way::First).await {
                Ok(Taken::Request(_) | Taken::Heard) => {}
                Err(NotTaken::Refused(refusal)) => {
                    if session.push(&Way::First, refusal.line(), None).await.is_err() {
                        return Ok(());
                    }
                }
                Err(NotTaken::End(refusal, ended)) => return Err((refusal, ended)),
            },
            Ok(None) => return Ok(()),
            Err(error) => return end_of_first(lines, error, &session.shared.counters),
        }
        line = lines.next().await;
    }
}

fn end_of_first(lines: &mut Lines, error: LineError, counters: &Counters) -> First {
    let (refusal, ended) = match error {
        LineError::TooLarge => {
            lines.stop(Reset::TooLarge);
            (too_large(), Ended::violation("message too large"))
        }
        LineError::Stalled => (Refusal::new(PARSE, "parse error: the message did not end in time"), Ended::violation("message stalled")),
        LineError::Busy => (busy(), Ended::limit("too many large messages")),
        LineError::Truncated => (Refusal::new(PARSE, "parse error: the stream ended in a message"), Ended::violation("message cut off")),
        LineError::Gone => return Ok(()),
    };
    counters.refused(&refusal);
    Err((Some(refusal), ended))
}

pub(crate) fn too_large() -> Refusal {
    Refusal::new(INVALID, format!("message too large: at most {MAX_MESSAGE} bytes"))
}

fn busy() -> Refusal {
    Refusal::new(BUSY, "too many large messages at once; nothing was done, try again later")
}

/// Takes the streams that the client opens besides.
pub(super) async fn further(session: Arc<Session>) -> Ended {
    let mut requests = JoinSet::new();
    let mut unagreed = 0;
    loop {
        tokio::select! {
            Ok((send, receive)) = session.connection.accept_bi() => {
                if session.has_streams() {
                    // As many as QUIC lets be open at once.
                    requests.spawn(request(session.clone(), send, receive));
                } else {
                    refuse(send, receive);
                    count(&session.shared.counters.streams);
                    unagreed += 1;
                }
            }
            Ok(mut receive) = session.connection.accept_uni() => {
                let _ = receive.stop(Reset::Confused.code());
                count(&session.shared.counters.streams);
                unagreed += 1;
            }
            Some(_) = requests.join_next() => {}
            // No more streams: the connection is gone, and somebody else says so.
            else => std::future::pending().await,
        }
        if unagreed > UNAGREED {
            return Ended::violation("streams that were not agreed on");
        }
    }
}

fn refuse(mut send: SendStream, mut receive: RecvStream) {
    let _ = receive.stop(Reset::Confused.code());
    let _ = send.reset(Reset::Confused.code());
}

/// Serves one request on its stream.
async fn request(session: Arc<Session>, mut send: SendStream, receive: RecvStream) {
    let times = &session.shared.options.times;
    let mut lines = Lines::new(receive, times.line);
    lines.allow(MAX_MESSAGE, session.turns(PATIENCE));
    match timeout(times.handshake, lines.magic()).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(_)) | Err(_)) | Err(_) => {
            lines.stop(Reset::Confused);
            let _ = send.reset(Reset::Confused.code());
            return;
        }
    }
    let line = match timeout(times.handshake.max(times.line), lines.next()).await.unwrap_or(Err(LineError::Stalled)) {
        Ok(Some(line)) => line,
        Ok(None) | Err(LineError::Gone) => {
            let _ = send.reset(Reset::Cancelled.code());
            return;
        }
        Err(error) => {
            let refusal = match error {
                LineError::TooLarge => too_large(),
                LineError::Busy => busy(),
                _ => Refusal::new(PARSE, "parse error: the message did not end in time"),
            };
            lines.stop(if matches!(error, LineError::TooLarge) { Reset::TooLarge } else { Reset::Cancelled });
            session.shared.counters.refused(&refusal);
            last(&session, &mut send, &refusal).await;
            return;
        }
    };
    let (answers, mut waiting) = mpsc::channel(QUEUE);
    match session.take(&line, Way::Own(answers)).await {
        Ok(Taken::Request(number)) => {
            drop(line);
            answer(&session, number, send, &mut lines, &mut waiting).await;
        }
        Ok(Taken::Heard) => {}
        Err(NotTaken::Refused(refusal)) => last(&session, &mut send, &refusal).await,
        Err(NotTaken::End(refusal, ended)) => {
            if let Some(refusal) = refusal {
                last(&session, &mut send, &refusal).await;
                // The connection is closed next, and with it goes what has not arrived.
                let _ = timeout(times.parting, send.stopped()).await;
            }
            session.cut(ended);
        }
    }
}

/// Says why a request is refused, and nothing more.
async fn last(session: &Session, send: &mut SendStream, refusal: &Refusal) {
    if let Ok(out) = session.unread.out(refusal.line(), None)
        && outbox::write_one(send, &out, session.shared.options.times.stalled).await.is_ok()
    {
        let _ = send.finish();
    }
}

/// Writes what belongs to a request, until there is no more or the client does not want it.
async fn answer(session: &Arc<Session>, number: i64, mut send: SendStream, lines: &mut Lines, waiting: &mut mpsc::Receiver<Out>) {
    let stopped = send.stopped();
    tokio::pin!(stopped);
    let mut open = true;
    let mut answered = false;
    loop {
        tokio::select! {
            out = waiting.recv() => {
                let Some(out) = out else { break };
                match outbox::write_one(&mut send, &out, session.shared.options.times.stalled).await {
                    Ok(()) => answered = true,
                    Err(Failed::Stalled) => return session.cut(Ended::limit("answers are not read")),
                    Err(Failed::Stopped | Failed::Gone) => return session.cancel(number).await,
                }
            }
            _ = &mut stopped => return session.cancel(number).await,
            in_order = lines.end(), if open => {
                open = false;
                if !in_order {
                    session.cancel(number).await;
                }
            }
        }
    }
    // One that was cancelled ends without an answer.
    let _ = if answered { send.finish() } else { send.reset(Reset::Cancelled.code()) };
}
