use proptest::{collection::vec, prelude::*};

use super::*;

fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = put(kind);
    out.extend(put(payload.len() as u64));
    out.extend(payload);
    out
}

/// The shortest form.
fn put(value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    match value {
        0..=0x3f => vec![bytes[7]],
        0x40..=0x3fff => vec![bytes[6] | 0x40, bytes[7]],
        0x4000..=0x3fff_ffff => vec![bytes[4] | 0x80, bytes[5], bytes[6], bytes[7]],
        _ => {
            let mut bytes = bytes;
            bytes[0] |= 0xc0;
            bytes.to_vec()
        }
    }
}

/// Feeds `bytes` cut at `cuts` and gives the pieces that come out.
fn pieces(frames: &mut Frames, bytes: &[u8], cuts: &[usize]) -> Result<Vec<Bytes>, Violation> {
    Ok(pieces_and_payload(frames, bytes, cuts)?.0)
}

fn pieces_and_payload(frames: &mut Frames, bytes: &[u8], cuts: &[usize]) -> Result<(Vec<Bytes>, usize), Violation> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    let (mut out, mut payload) = (Vec::new(), 0);
    for cut in cuts.windows(2) {
        let mut chunk = Bytes::copy_from_slice(&bytes[cut[0]..cut[1]]);
        while let Some(piece) = frames.next(&mut chunk)? {
            out.push(piece);
            payload += frames.payload();
        }
        assert!(chunk.is_empty());
    }
    Ok((out, payload))
}

#[derive(Clone, Debug)]
struct Sent {
    kind: u64,
    payload: Vec<u8>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let kind = prop_oneof![4 => Just(0u64), 4 => Just(1u64), 1 => Just(0xdu64), 2 => (0u64..1 << 40).prop_map(|n| n * 0x1f + 0x21)];
    (kind, vec(any::<u8>(), 0..200)).prop_map(|(kind, payload)| Sent { kind, payload })
}

proptest! {
    #[test]
    fn any_split_of_a_stream_gives_the_same_frames(sent in vec(sent(), 0..12), cuts in vec(any::<usize>(), 0..40)) {
        let sent: Vec<_> = sent.into_iter().filter(|sent| sent.kind != WEBTRANSPORT).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(|sent| frame(sent.kind, &sent.payload)).collect();
        let expected: Vec<u8> = sent
            .iter()
            .filter(|sent| is_known(sent.kind) || (sent.kind == DATA && !sent.payload.is_empty()))
            .flat_map(|sent| frame(sent.kind, &sent.payload))
            .collect();
        let mut frames = Frames::new(Stream::Request);
        let (out, payload) = pieces_and_payload(&mut frames, &bytes, &cuts).unwrap();
        prop_assert_eq!(out.concat(), expected);
        prop_assert_eq!(payload, sent.iter().filter(|sent| sent.kind == DATA).map(|sent| sent.payload.len()).sum::<usize>());
        prop_assert!(frames.end().is_ok());
        prop_assert_eq!(frames.held(), 0);
    }

    #[test]
    fn a_known_frame_comes_out_whole(payload in vec(any::<u8>(), 0..3000), cuts in vec(any::<usize>(), 0..40)) {
        let bytes = frame(1, &payload);
        let out = pieces(&mut Frames::new(Stream::Request), &bytes, &cuts).unwrap();
        prop_assert_eq!(out, vec![Bytes::from(bytes)]);
    }

    #[test]
    fn garbage_never_panics_and_keeps_little(bytes in vec(any::<u8>(), 0..4000), cuts in vec(any::<usize>(), 0..40)) {
        for stream in [Stream::Request, Stream::Control] {
            let mut frames = Frames::new(stream);
            let _ = pieces(&mut frames, &bytes, &cuts);
            prop_assert!(frames.held() <= bytes.len());
            let _ = frames.end();
        }
    }

    #[test]
    fn the_header_of_data_is_what_is_read(len in 0usize..1 << 34) {
        let bytes = data_header(len);
        let header = Header::read(&bytes).unwrap();
        prop_assert_eq!((header.kind, header.len, header.size), (DATA, len as u64, bytes.len()));
    }
}

#[test]
fn a_frame_announcing_too_much_is_refused_at_its_header() {
    for kind in [1, 0x21, 4, 0x5] {
        let mut bytes = put(kind);
        bytes.extend(put(1 << 30));
        let mut frames = Frames::new(Stream::Request);
        assert_eq!(pieces(&mut frames, &bytes, &[1, 2]), Err(Violation::FrameTooLarge), "type {kind:#x}");
        assert_eq!(frames.held(), 0);
    }
}

#[test]
fn data_of_any_length_passes() {
    let mut bytes = put(0);
    bytes.extend(put((1 << 62) - 1));
    bytes.extend([7; 100]);
    assert_eq!(pieces(&mut Frames::new(Stream::Request), &bytes, &[3]).unwrap().concat(), bytes);
}

#[test]
fn data_passes_without_a_copy() {
    let bytes = Bytes::from(frame(0, &[7; 1000]));
    let mut chunk = bytes.clone();
    let piece = Frames::new(Stream::Request).next(&mut chunk).unwrap().unwrap();
    assert_eq!((piece.as_ptr(), piece.len()), (bytes.as_ptr(), bytes.len()));
}

#[test]
fn frames_that_carry_nothing_end_a_request() {
    for kind in [0, 0x21] {
        let bytes = frame(kind, b"").repeat(REQUEST_FRAMES as usize + 1);
        assert_eq!(pieces(&mut Frames::new(Stream::Request), &bytes, &[]), Err(Violation::FrameFlood), "type {kind:#x}");
    }
    let bytes = frame(0x21, &[0; 60_000]).repeat(5);
    assert_eq!(pieces(&mut Frames::new(Stream::Request), &bytes, &[]), Err(Violation::FrameFlood), "many bytes");
}

#[test]
fn frames_on_the_control_stream_are_explained_by_requests() {
    let update = frame(0xf0700, b"\x00u=1");
    let mut frames = Frames::new(Stream::Control);
    assert!(pieces(&mut frames, &update.repeat(CONTROL_FRAMES as usize), &[]).is_ok());
    frames.requests(1);
    assert!(pieces(&mut frames, &update.repeat(CONTROL_FRAMES_A_REQUEST as usize), &[]).is_ok());
    assert_eq!(pieces(&mut frames, &update, &[]), Err(Violation::FrameFlood));
}

#[test]
fn a_stream_that_ends_within_a_frame_is_truncated() {
    let bytes = frame(0, b"hello");
    for cut in 1..bytes.len() {
        let mut frames = Frames::new(Stream::Request);
        pieces(&mut frames, &bytes[..cut], &[]).unwrap();
        assert_eq!(frames.end(), Err(Violation::Truncated), "after {cut} bytes");
    }
}

#[test]
fn no_data_on_the_control_stream_and_no_webtransport() {
    assert_eq!(pieces(&mut Frames::new(Stream::Control), &frame(0, b"x"), &[]), Err(Violation::UnexpectedFrame));
    assert_eq!(pieces(&mut Frames::new(Stream::Request), &[0x40, 0x41, 0], &[]), Err(Violation::UnexpectedFrame));
}
