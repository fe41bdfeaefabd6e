//! One function a decoder: any bytes in, promises checked. `wire/tests/it.rs` calls them with seeded
//! mutations on stable Rust, `fuzz_targets/` with what libFuzzer finds.
//!
//! Each returns in bounded time and memory and never panics, unless a promise is broken.

use std::time::{Duration, Instant};

use horos_wire::{
    Address, Bytes, Format, Incarnation, NoEffect, NodeId, Protocol, Request, Unknown, Visit, codec,
    context::Claims,
    control::{self, Control, Hello},
    frame, go,
    id::{self, Dossier, Id, NanoId, Prefix, ShortId},
    protocol::{Methods, keys::Keys, node::Node},
    session::{Liveness, MAX_OUTBOX, Session},
};
use serde::{Serialize, de::DeserializeOwned};

/// Reads `body` as a `T` in both formats; what is read is written and read again unchanged.
fn reread<T: Serialize + DeserializeOwned>(body: &[u8]) {
    for format in [Format::Bincode, Format::Json] {
        let Ok(value) = codec::decode::<T>(format, body) else { continue };
        let mut written = Vec::new();
        codec::encode(format, &value, &mut written).expect("what was read can be written");
        let again: T = codec::decode(format, &written).expect("what was written can be read");
        let mut twice = Vec::new();
        codec::encode(format, &again, &mut twice).expect("what was read can be written");
        assert_eq!(written, twice, "{} reads back as it was", std::any::type_name::<T>());
    }
}

struct Reread<'a>(&'a [u8]);

impl<R: Request> Visit<R> for Reread<'_> {
    fn visit(&mut self) {
        reread::<R>(self.0);
        reread::<R::Reply>(self.0);
        reread::<R::Error>(self.0);
    }
}

/// Every request, reply and error of Horos's own protocols, in both formats.
pub(crate) fn codec(data: &[u8]) {
    <Node as Methods<Reread<'_>>>::visit(&mut Reread(data));
    <Keys as Methods<Reread<'_>>>::visit(&mut Reread(data));
    assert_eq!((Node::NAME, Keys::NAME), ("horos.node", "horos.keys"));
    reread::<NoEffect>(data);
    reread::<Unknown>(data);
    reread::<Claims>(data);
}

/// The message stream: however the bytes are cut into chunks, the same frames come out of them.
pub(crate) fn frame(data: &[u8]) {
    const LIMIT: usize = frame::MAX_SMALL_FRAME;
    let (cuts, stream) = data.split_at(data.len().min(4));
    let mut whole = Vec::new();
    let mut rest = stream;
    let end = loop {
        match frame::read(rest, LIMIT) {
            Ok(Some((frame, used))) => {
                assert!(used <= rest.len() && frame.body.len() < used);
                assert!(whole.len() < stream.len(), "every frame takes bytes");
                whole.push((frame.header, frame.body.to_vec()));
                rest = &rest[used..];
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let mut decoder = frame::Decoder::new(LIMIT);
    let mut cut = Vec::new();
    let mut failed = None;
    let mut rest = stream;
    let mut turn = 0;
    'chunks: while !rest.is_empty() {
        let size = cuts.get(turn % 4).map_or(1, |cut| usize::from(*cut)).clamp(1, rest.len());
        turn += 1;
        decoder.push(Bytes::copy_from_slice(&rest[..size]));
        rest = &rest[size..];
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => cut.push((frame.header, frame.body.to_vec())),
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break 'chunks;
                }
            }
        }
    }
    assert_eq!(whole, cut, "chunks change no frame");
    assert_eq!(end, failed, "nor the end");
    let _ = frame::LargeBody::from_bytes(data);
}

fn hello(uri: &str) -> Hello {
    Hello {
        version_min: control::VERSION_MIN,
        version_max: control::VERSION_MAX,
        features: 0,
        node: NodeId::from_uri(uri).expect("a constant"),
        incarnation: Incarnation(7),
        release: "0.1.0".into(),
        addresses: vec![],
    }
}

/// A session whose peer, after an honest hello, sends what it likes while time passes.
///
/// The first byte says whether the hello is sent at all and whether the outbox is ever emptied.
pub(crate) fn session(data: &[u8]) {
    let Some((mode, mut stream)) = data.split_first() else { return };
    let mut now = Instant::now();
    let peer = hello("spiffe://shop/fo/fo-1");
    let mut session = Session::new(hello("spiffe://shop/bo/bo-1"), peer.node.clone(), Liveness::default(), now);
    if mode & 1 == 0 {
        session.handle(now, Control::Hello(peer)).expect("an honest hello opens the session");
    }
    let mut fed = 0;
    while let Ok(Some((frame, used))) = control::read(stream) {
        let mut bytes = Vec::new();
        control::write(&mut bytes, &frame).expect("what was read can be written");
        assert_eq!(control::read(&bytes).expect("what was written can be read"), Some((frame.clone(), bytes.len())));
        stream = &stream[used..];
        fed += 1;
        if session.handle(now, frame).is_err() {
            break;
        }
        if let Some(next) = session.next_timeout() {
            now = now.max(next) + Duration::from_millis(1);
        }
        if session.handle_timeout(now).is_err() {
            break;
        }
        let mut events = 0;
        while session.poll_event().is_some() {
            events += 1;
            assert!(events <= 8, "a frame makes few events");
        }
        if mode & 2 == 0 {
            let mut sent = 0;
            while session.poll_transmit().is_some() {
                sent += 1;
                assert!(sent <= MAX_OUTBOX);
            }
        }
    }
    let mut left = 0;
    while session.poll_transmit().is_some() {
        left += 1;
    }
    assert!(left <= MAX_OUTBOX, "{left} control frames wait after {fed}");
}

/// The Go system's envelope.
pub(crate) fn go(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(envelope) = go::open(bytes.clone()) {
        assert!(envelope.payload.len() <= data.len());
        if envelope.integrity == go::Integrity::Checked {
            assert_eq!(go::wrap(envelope.format, &envelope.payload).expect("it was within limits"), bytes);
        }
    }
    let checked = go::open_checked(bytes.clone(), &go::Formats::default());
    assert!(checked.is_err() || checked == go::open(bytes.clone()));
    let _ = go::read_answer(bytes);
    if let Some(error) = go::ServiceError::detect(data)
        && let Ok(again) = error.encode()
    {
        assert_eq!(go::ServiceError::detect(&again), Some(error));
    }
}

/// Every form of identifier.
pub(crate) fn ids(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(uuid) = id::parse(&text) {
        assert_eq!(uuid.to_string(), text);
    }
    if let Ok(uuid) = id::parse_lenient(&text) {
        assert_eq!(id::parse_any_version(&uuid.to_string()), Ok(uuid));
    }
    for typed in [text.parse::<Id<Dossier>>(), Id::parse_lenient(&text)].into_iter().flatten() {
        assert_eq!(typed.to_string().parse(), Ok(typed));
        assert_eq!(Id::from_bytes(typed.to_bytes()), Ok(typed));
    }
    for short in [text.parse::<ShortId>(), ShortId::parse_checked(&text), ShortId::parse_lenient(&text)].into_iter().flatten() {
        assert_eq!(ShortId::parse_checked(&short.with_check()), Ok(short));
    }
    if let Ok((stamp, rest)) = id::stamp::split(&text) {
        assert_eq!(format!("{stamp}{rest}"), text);
    }
    if let Ok(uuid) = id::stamp::parse_timestamped(&text) {
        assert_eq!(id::stamp::timestamped(uuid).as_deref(), Ok(&*text));
    }
    if let Ok(nano) = text.parse::<NanoId<12>>() {
        assert_eq!(nano.as_str(), text);
    }
    if let Ok((prefix, rest)) = Prefix::split(&text) {
        assert!(prefix.len() <= Prefix::MAX && format!("{prefix}{rest}") == text);
    }
}

/// Addresses and identities.
pub(crate) fn address(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string(), text);
    }
    if let Ok(identity) = NodeId::from_uri(&text) {
        assert_eq!(identity.to_uri(), text);
    }
    if let Err(error) = text.parse::<Address>() {
        assert!(error.to_string().len() < 4096, "an error carries no megabyte on");
    }
}
