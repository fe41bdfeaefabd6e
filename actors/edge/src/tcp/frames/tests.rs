use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SETTINGS: u8 = 4;
const PING: u8 = 6;
const HEAD: usize = 1000;

fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags, 0, 0, 0, 1];
    bytes.resize(HEADER + length, 0);
    bytes
}

/// After the preface.
fn begun(now: Instant) -> Frames {
    let mut frames = Frames::new(now);
    frames.received(&[0; PREFACE as usize], HEAD, || now).unwrap();
    frames
}

#[test]
fn what_has_begun_and_not_ended_is_known_at_every_byte() {
    let now = Instant::now();
    let speech = [
        (vec![0; PREFACE as usize], true),
        (frame(SETTINGS, 0, 6), true),
        (frame(HEADERS, END_HEADERS, 50), true),
        ([frame(HEADERS, 0, 50), frame(CONTINUATION, 0, 0), frame(CONTINUATION, END_HEADERS, 7)].concat(), true),
        (frame(PING, 0, 8), true),
    ];
    let mut frames = Frames::new(now);
    for (piece, is_midway) in speech {
        assert!(!frames.is_midway(), "nothing has begun before");
        let ended = frames.ended();
        for byte in &piece[..piece.len() - 1] {
            frames.received(&[*byte], HEAD, || now).unwrap();
            assert_eq!(frames.is_midway(), is_midway);
            assert_eq!(frames.ended(), ended);
        }
        frames.received(&piece[piece.len() - 1..], HEAD, || now).unwrap();
        assert!(!frames.is_midway() && frames.ended() == ended + 1);
    }
    // A body that comes slowly is another's business.
    frames.received(&frame(DATA, 0, 100)[..50], HEAD, || now).unwrap();
    assert!(!frames.is_midway());
}

#[test]
fn a_head_that_is_too_long_is_noticed_once_however_it_is_cut() {
    let now = Instant::now();
    let mut frames = begun(now);
    frames.received(&frame(HEADERS, END_HEADERS, HEAD + 100), HEAD, || now).unwrap();
    assert_eq!(frames.take_oversized(), 0, "padding and priority are not the head's");
    frames.received(&frame(HEADERS, END_HEADERS, HEAD + 300), HEAD, || now).unwrap();
    frames
        .received(&[frame(HEADERS, 0, HEAD), frame(CONTINUATION, 0, 300), frame(CONTINUATION, END_HEADERS, 300)].concat(), HEAD, || now)
        .unwrap();
    assert_eq!((frames.take_oversized(), frames.take_oversized()), (2, 0));
}

#[test]
fn what_is_used_up_is_restored_by_time() {
    let start = Instant::now();
    let mut frames = begun(start);
    let reset = frame(RST_STREAM, 0, 4);
    let mut allowed = 0;
    while frames.received(&reset, HEAD, || start).is_ok() {
        allowed += 1;
    }
    assert_eq!(allowed, RESETS as usize);
    // At the rate that time restores, for ever.
    let mut frames = begun(start);
    for index in 0..10_000_u32 {
        let now = start + Duration::from_secs(1) * index / (RESETS_A_SECOND as u32);
        frames.received(&reset, HEAD, || now).unwrap();
    }
}

#[test]
fn frames_that_go_with_traffic_are_free() {
    let now = Instant::now();
    let mut frames = begun(now);
    let update = frame(8, 0, 4);
    // Two windows opened for each frame of 16 KiB taken, far beyond what is allowed without traffic.
    for _ in 0..100_000 {
        frames.sent(16 * 1024);
        frames.received(&update, HEAD, || now).unwrap();
        frames.received(&update, HEAD, || now).unwrap();
    }
    let mut flood = 0;
    while frames.received(&update, HEAD, || now).is_ok() {
        flood += 1;
    }
    assert!((2000..2100).contains(&flood), "{flood}");
}

#[test]
fn what_a_flood_was_of_is_told() {
    let now = Instant::now();
    let told = |bytes: Vec<u8>| {
        let mut frames = begun(now);
        frames.received(&bytes, HEAD, || now).unwrap();
        frames.suspect()
    };
    assert_eq!(told(frame(HEADERS, 0, 10)), Reason::HeadTooLarge);
    assert_eq!(told(frame(RST_STREAM, 0, 4).repeat(40)), Reason::ResetFlood);
    assert_eq!(told([frame(RST_STREAM, 0, 4).repeat(40), frame(HEADERS, END_HEADERS, 10)].concat()), Reason::ResetFlood);
    assert_eq!(told(frame(DATA, 0, 0)), Reason::FrameFlood);
}

proptest! {
    /// However bytes are cut, and whatever they are, the same is noticed.
    #[test]
    fn the_same_is_noticed_however_it_is_cut(bytes in prop::collection::vec(any::<u8>(), 0..2000), cuts in prop::collection::vec(1_usize..200, 1..50)) {
        let now = Instant::now();
        let (mut whole, mut cut) = (begun(now), begun(now));
        let expected = whole.received(&bytes, HEAD, || now);
        let mut left = &bytes[..];
        let mut cuts = cuts.iter().cycle();
        let mut found = Ok(());
        while !left.is_empty() && found.is_ok() {
            let (part, rest) = left.split_at((*cuts.next().unwrap()).min(left.len()));
            found = cut.received(part, HEAD, || now);
            left = rest;
        }
        prop_assert_eq!(expected, found);
        prop_assert_eq!(whole.is_midway(), cut.is_midway());
        prop_assert_eq!(whole.ended(), cut.ended());
        prop_assert_eq!(whole.take_oversized(), cut.take_oversized());
    }
}
