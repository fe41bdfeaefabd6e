//! What ends a connection, and with which word (RFC 9114 §8.1, RFC 9204 §6).

use h3::error::Code;
use quinn::VarInt;

use crate::Reason;

/// What a peer did that ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("a frame other than DATA announces more than any may hold")]
    FrameTooLarge,
    #[error("too many frames or streams that carry nothing")]
    FrameFlood,
    #[error("too much of request heads is incomplete")]
    HeadsTooLarge,
    #[error("too many requests cancelled")]
    ResetFlood,
    #[error("a stream ended within a frame")]
    Truncated,
    #[error("a frame that has no place here")]
    UnexpectedFrame,
    #[error("a stream that there is already, or that a client does not open")]
    UnexpectedStream,
    #[error("a stream that the connection needs was closed")]
    ClosedCriticalStream,
    #[error("a QPACK encoder used a table that it was not given")]
    QpackEncoder,
    #[error("a QPACK decoder answered what was never sent")]
    QpackDecoder,
}

impl Violation {
    pub(super) const fn code(self) -> Code {
        match self {
            Self::FrameTooLarge | Self::FrameFlood | Self::HeadsTooLarge | Self::ResetFlood => Code::H3_EXCESSIVE_LOAD,
            Self::Truncated => Code::H3_FRAME_ERROR,
            Self::UnexpectedFrame => Code::H3_FRAME_UNEXPECTED,
            Self::UnexpectedStream => Code::H3_STREAM_CREATION_ERROR,
            Self::ClosedCriticalStream => Code::H3_CLOSED_CRITICAL_STREAM,
            Self::QpackEncoder => Code::QPACK_ENCODER_STREAM_ERROR,
            Self::QpackDecoder => Code::QPACK_DECODER_STREAM_ERROR,
        }
    }

    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::FrameTooLarge => Reason::FrameTooLarge,
            Self::FrameFlood => Reason::FrameFlood,
            Self::HeadsTooLarge => Reason::HeadTooLarge,
            Self::ResetFlood => Reason::ResetFlood,
            Self::Truncated
            | Self::UnexpectedFrame
            | Self::UnexpectedStream
            | Self::ClosedCriticalStream
            | Self::QpackEncoder
            | Self::QpackDecoder => Reason::Protocol,
        }
    }
}

/// A code as QUIC carries it.
pub(super) fn varint(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}
