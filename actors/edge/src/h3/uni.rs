//! The streams that a client opens and that carry no request (RFC 9114 §6.2, RFC 9204 §4.2).
//!
//! Their types are read here. h3 gets the control stream. QPACK's streams are read here, for h3 never reads them, and a
//! client that cancels many requests would fill their window: since we offer no dynamic table, all that can come is a
//! capacity of zero and cancellations. A stream of another type is stopped unread, and there may be so many.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use h3::{error::Code, quic::ConnectionErrorIncoming};
use quinn::ConnectionError;

use super::{
    frames,
    gate::Gate,
    quic::{Incoming, Shared, connection_error},
    violation::{Violation, varint},
};

/// Open at once: the three that matter, and some that are there to be ignored.
pub(super) const OPEN: u32 = 8;
/// Of types that nobody knows, in a connection's life. Browsers open one or two to keep servers honest (RFC 9114 §6.2.3).
const UNKNOWN: u32 = 64;
/// Capacities that an encoder may set, each zero.
const CAPACITIES: u64 = 64;
/// Cancellations that a decoder may send, beyond one for each request.
const CANCELLATIONS: u64 = 64;

/// A stream whose type has not come yet.
struct Untyped {
    stream: quinn::RecvStream,
    bytes: [u8; 8],
    len: usize,
}

/// A stream's type.
enum Typed {
    Is(u64),
    /// It ended before, which is allowed (RFC 9114 §6.2).
    Ended,
}

impl Untyped {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Typed> {
        loop {
            let size = if self.len == 0 { 1 } else { frames::varint_size(self.bytes[0]) };
            if self.len == size {
                return Poll::Ready(frames::varint(&self.bytes[..size]).map_or(Typed::Ended, |(kind, _)| Typed::Is(kind)));
            }
            // Not a byte more, so that the rest is whole for whoever reads it.
            match pin!(self.stream.read(&mut self.bytes[self.len..size])).poll(cx) {
                Poll::Ready(Ok(Some(read))) => self.len += read,
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(Typed::Ended),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// All of them.
pub(super) struct Uni {
    incoming: BoxStream<'static, Result<quinn::RecvStream, ConnectionError>>,
    /// At most [`OPEN`]: QUIC lets no more be open.
    untyped: Vec<Untyped>,
    control: bool,
    encoder: Option<Instructions>,
    decoder: Option<Instructions>,
    unknown: u32,
    gate: Option<Gate>,
    shared: Arc<Shared>,
}

impl Uni {
    pub(super) fn new(connection: &quinn::Connection, shared: Arc<Shared>) -> Self {
        let incoming = stream::unfold(connection.clone(), |connection| async { Some((connection.accept_uni().await, connection)) });
        Self {
            incoming: Box::pin(incoming),
            untyped: Vec::new(),
            control: false,
            encoder: None,
            decoder: None,
            unknown: 0,
            gate: Some(Gate::new()),
            shared,
        }
    }

    /// Reads what there is, until the control stream comes.
    pub(super) fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, ConnectionErrorIncoming>> {
        let gate = self.gate.take().unwrap_or_else(Gate::new);
        let polled = gate.poll(cx, |cx| self.poll_all(cx));
        self.gate = Some(gate);
        polled
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, ConnectionErrorIncoming>> {
        while let Poll::Ready(Some(opened)) = self.incoming.poll_next_unpin(cx) {
            let stream = opened.map_err(connection_error)?;
            self.untyped.push(Untyped { stream, bytes: [0; 8], len: 0 });
        }
        let mut at = 0;
        while let Some(untyped) = self.untyped.get_mut(at) {
            match untyped.poll(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(Typed::Ended) => drop(self.untyped.swap_remove(at)),
                Poll::Ready(Typed::Is(kind)) => {
                    let stream = self.untyped.swap_remove(at).stream;
                    match self.typed(kind, stream) {
                        Ok(None) => {}
                        Ok(Some(control)) => return Poll::Ready(Ok(control)),
                        Err(violation) => return self.refuse(violation),
                    }
                }
            }
        }
        let requests = self.shared.requests();
        let read = [(&mut self.encoder, CAPACITIES), (&mut self.decoder, CANCELLATIONS.saturating_add(requests))]
            .into_iter()
            .try_for_each(|(instructions, granted)| instructions.as_mut().map_or(Ok(()), |instructions| instructions.poll(cx, granted)));
        if let Err(violation) = read {
            return self.refuse(violation);
        }
        Poll::Pending
    }

    fn refuse(&self, violation: Violation) -> Poll<Result<Incoming, ConnectionErrorIncoming>> {
        self.shared.end(violation);
        Poll::Ready(Err(ConnectionErrorIncoming::Undefined(Arc::new(violation))))
    }

    fn typed(&mut self, kind: u64, mut stream: quinn::RecvStream) -> Result<Option<Incoming>, Violation> {
        match kind {
            0x0 if !self.control => {
                self.control = true;
                return Ok(Some(Incoming::control(stream, self.shared.clone())));
            }
            0x2 if self.encoder.is_none() => self.encoder = Some(Instructions::new(stream, Qpack::Encoder)),
            0x3 if self.decoder.is_none() => self.decoder = Some(Instructions::new(stream, Qpack::Decoder)),
            // A second one, or a push, which is a server's.
            0x0..=0x3 => return Err(Violation::UnexpectedStream),
            _ => {
                self.unknown += 1;
                if self.unknown > UNKNOWN {
                    return Err(Violation::FrameFlood);
                }
                // It fails for one that has ended.
                let _ = stream.stop(varint(Code::H3_STREAM_CREATION_ERROR));
            }
        }
        Ok(None)
    }
}

/// Which of QPACK's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qpack {
    Encoder,
    Decoder,
}

/// The instructions on one of them.
struct Instructions {
    stream: quinn::RecvStream,
    parser: Parser,
}

impl Instructions {
    const fn new(stream: quinn::RecvStream, qpack: Qpack) -> Self {
        Self { stream, parser: Parser { qpack, within: None, instructions: 0 } }
    }

    fn poll(&mut self, cx: &mut Context<'_>, granted: u64) -> Result<(), Violation> {
        loop {
            let mut bytes = [0; 64];
            let read = match pin!(self.stream.read(&mut bytes)).poll(cx) {
                Poll::Ready(Ok(Some(read))) => read,
                Poll::Ready(Err(quinn::ReadError::ConnectionLost(_))) | Poll::Pending => return Ok(()),
                Poll::Ready(Ok(None) | Err(_)) => return Err(Violation::ClosedCriticalStream),
            };
            self.parser.feed(&bytes[..read])?;
            if self.parser.instructions > granted {
                return Err(Violation::FrameFlood);
            }
        }
    }
}

/// Knows the two instructions that there can be.
#[derive(Debug)]
struct Parser {
    qpack: Qpack,
    /// In a cancelled stream's number: how many bytes of it have come.
    within: Option<u32>,
    instructions: u64,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        for byte in bytes {
            match (self.qpack, self.within) {
                // "Set Dynamic Table Capacity" to 0 (RFC 9204 §4.3.1).
                (Qpack::Encoder, _) if *byte == 0x20 => self.instructions += 1,
                (Qpack::Encoder, _) => return Err(Violation::QpackEncoder),
                // "Stream Cancellation" (RFC 9204 §4.4.2); a number below 2^62 has at most ten bytes (RFC 7541 §5.1).
                (Qpack::Decoder, None) if byte & 0xc0 == 0x40 => {
                    self.instructions += 1;
                    self.within = (byte & 0x3f == 0x3f).then_some(1);
                }
                (Qpack::Decoder, Some(len)) if len < 10 => self.within = (byte & 0x80 != 0).then_some(len + 1),
                (Qpack::Decoder, _) => return Err(Violation::QpackDecoder),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn parser(qpack: Qpack) -> Parser {
        Parser { qpack, within: None, instructions: 0 }
    }

    #[test]
    fn an_encoder_can_only_do_without_a_table() {
        let mut encoder = parser(Qpack::Encoder);
        assert_eq!(encoder.feed(&[0x20, 0x20]), Ok(()));
        assert_eq!(encoder.instructions, 2);
        // A capacity of 30, an insertion, a duplicate.
        for byte in [0x3e, 0xc0, 0x40, 0x00] {
            assert_eq!(parser(Qpack::Encoder).feed(&[byte]), Err(Violation::QpackEncoder), "{byte:#x}");
        }
    }

    #[test]
    fn a_decoder_can_only_cancel() {
        let mut decoder = parser(Qpack::Decoder);
        // Streams 4 and 1337, the latter in two reads.
        assert_eq!(decoder.feed(&[0x44, 0x7f]), Ok(()));
        assert_eq!(decoder.feed(&[0xfa, 0x09, 0x40]), Ok(()));
        assert_eq!(decoder.instructions, 3);
        // An acknowledgement, an increment.
        for byte in [0x80, 0x01] {
            assert_eq!(parser(Qpack::Decoder).feed(&[byte]), Err(Violation::QpackDecoder), "{byte:#x}");
        }
        let endless = [&[0x7f][..], &[0x80; 10]].concat();
        assert_eq!(parser(Qpack::Decoder).feed(&endless), Err(Violation::QpackDecoder));
    }
}
