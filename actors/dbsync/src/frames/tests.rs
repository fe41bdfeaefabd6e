use proptest::{prelude::*, test_runner::Config};
use sha2::{Digest as _, Sha256};

use super::*;

fn table(name: &str) -> TableHead {
    TableHead {
        name: name.into(),
        columns: vec!["id".into(), "note".into()],
        key: vec![0],
        collations: vec![None],
        ddl: vec![format!("CREATE TABLE {name} (id INTEGER PRIMARY KEY, note)")],
        fingerprint: [7; 16],
    }
}

fn header(base: bool) -> Header {
    let at = |seq| Position { epoch: [1; 16], seq, stamp: -2 };
    Header {
        publication: "shop".into(),
        base: base.then(|| at(3)),
        to: at(9),
        fingerprint: [5; 32],
        made_at: 1_700_000_000_000,
        encoding: Encoding::Utf8,
        complete: true,
        tables: vec![table("a"), TableHead { key: vec![1, 0], collations: vec![Some("NOCASE".into()), None], ddl: vec![], ..table("b") }],
    }
}

/// Rows of two values.
fn rows(numbers: std::ops::Range<u8>) -> Bytes {
    numbers.flat_map(|number| [1, number % 128, 3, 2, b'o', b'k']).collect::<Vec<u8>>().into()
}

fn some_rows(table: u16, numbers: std::ops::Range<u8>) -> Frame {
    Frame::Rows { table, count: numbers.len() as u32, rows: rows(numbers) }
}

fn chunk(table: u16, numbers: std::ops::Range<u8>) -> Frame {
    Frame::Chunk { table, rows: numbers.len() as u32, digest: Sha256::digest(rows(numbers)).into() }
}

fn key(number: u8) -> Option<KeyBytes> {
    Some(Bytes::from(vec![1, number]))
}

/// Every frame once or more.
fn delta() -> Vec<Frame> {
    vec![
        Frame::Header(header(true)),
        some_rows(0, 0..100),
        Frame::Deletes { table: 0, keys: Bytes::from(vec![1, 3, 1, 4]), count: 2 },
        some_rows(1, 0..1),
        Frame::Whole { table: 1 },
        some_rows(1, 0..40),
        chunk(1, 0..40),
        chunk(1, 40..60),
        Frame::Range { table: 0, after: None, through: key(9) },
        some_rows(0, 2..9),
        some_rows(0, 9..10),
        Frame::Range { table: 0, after: key(20), through: None },
        Frame::Check { id: 0, table: 0, after: key(1), through: key(2), rows: 77, digest: [3; 32] },
        Frame::Check { id: 9, table: 0, after: None, through: None, rows: 0, digest: [4; 32] },
    ]
}

fn write(frames: &[Frame]) -> Vec<u8> {
    let mut writer = FrameWriter::new().unwrap();
    let mut stream = Vec::new();
    for frame in frames {
        stream.extend_from_slice(writer.frame(frame).unwrap());
    }
    stream.extend_from_slice(writer.end().unwrap());
    assert_eq!(writer.bytes(), stream.len() as u64);
    stream
}

fn read(stream: &[u8], piece: usize) -> Result<Vec<Frame>, FrameError> {
    let mut reader = FrameReader::new().unwrap();
    let mut found = Vec::new();
    for mut input in stream.chunks(piece.max(1)) {
        while let Some(frame) = reader.feed(&mut input)? {
            found.push(frame);
        }
        assert!(input.is_empty());
    }
    reader.finish()?;
    Ok(found)
}

#[test]
fn a_stream_comes_back_in_whatever_pieces_it_arrives() {
    let stream = write(&delta());
    for piece in [1, 2, 3, 7, 64, 1000, stream.len()] {
        let mut found = read(&stream, piece).unwrap();
        assert!(matches!(found.pop(), Some(Frame::End { rows: 151, .. })));
        assert_eq!(found, delta());
    }
}

#[test]
fn these_bytes_mean_these_frames_in_every_release() {
    let bytes = |frame: &Frame| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        hex::encode(bytes)
    };
    let expected = [
        "01 0473686f70 01 01010101010101010101010101010101 0300000000000000 feffffffffffffff \
         01010101010101010101010101010101 0900000000000000 feffffffffffffff \
         0505050505050505050505050505050505050505050505050505050505050505 0068e5cf8b010000 00 01 02 \
         0161 02 026964 046e6f7465 01 0000 00 01 2d435245415445205441424c45206120286964 20494e5445474552205052494d415259204b45592c206e6f746529 \
         07070707070707070707070707070707 \
         0162 02 026964 046e6f7465 02 0100 064e4f43415345 0000 00 00 07070707070707070707070707070707",
        "02 0100",
        "03 0100 02000000 010003026f6b 010103026f6b",
        "04 0000 02000000 01030104",
        "05 0100 14000000 e2c0e4b0e1fb7ec9ee7e49ecf8f7b0ed8c2eba1ba2bdc8a7cf1a37bc3a0e2fd5",
        "06 0000 00 030109",
        "07 00000000 0000 030101 030102 4d00000000000000 0303030303030303030303030303030303030303030303030303030303030303",
        "08 0500000000000000 0606060606060606060606060606060606060606060606060606060606060606",
    ];
    let frames = [
        Frame::Header(header(true)),
        Frame::Whole { table: 1 },
        some_rows(1, 0..2),
        delta().swap_remove(2),
        Frame::Chunk { table: 1, rows: 20, digest: hex::decode(expected[4][17..].replace(' ', "")).unwrap().try_into().unwrap() },
        delta().swap_remove(8),
        delta().swap_remove(12),
        Frame::End { rows: 5, sha256: [6; 32] },
    ];
    for (frame, expected) in frames.iter().zip(expected) {
        assert_eq!(bytes(frame), expected.replace(' ', ""));
    }
    // In front of them, and of an incompressible frame.
    let mut writer = FrameWriter::new().unwrap();
    assert_eq!(hex::encode(writer.frame(&Frame::Whole { table: 1 }).unwrap()), "48535932 04000000 00 020100".replace(' ', ""));
    assert_eq!(hex::encode(writer.frame(&Frame::Whole { table: 2 }).unwrap()), "04000000 00 020200".replace(' ', ""));
}

#[test]
fn frames_are_only_accepted_in_their_order() {
    let head = || Frame::Header(header(true));
    let wrong: Vec<Vec<Frame>> = vec![
        vec![Frame::Whole { table: 0 }],
        vec![],
        vec![head(), head()],
        vec![head(), Frame::Whole { table: 2 }],
        vec![head(), some_rows(9, 0..1)],
        vec![head(), Frame::Whole { table: 0 }, Frame::Whole { table: 0 }],
        vec![head(), Frame::Whole { table: 0 }, some_rows(1, 0..1)],
        vec![head(), Frame::Whole { table: 0 }, some_rows(0, 0..1)],
        vec![head(), Frame::Whole { table: 0 }, some_rows(0, 0..1), some_rows(0, 1..2), chunk(0, 0..2)],
        vec![head(), Frame::Whole { table: 0 }, some_rows(0, 0..1), Frame::Whole { table: 1 }, chunk(0, 0..1)],
        vec![head(), Frame::Whole { table: 0 }, Frame::Whole { table: 1 }, chunk(0, 0..1)],
        vec![head(), chunk(0, 0..1)],
        vec![head(), Frame::Whole { table: 0 }, Frame::Deletes { table: 0, keys: rows(0..1), count: 1 }],
        vec![head(), Frame::Range { table: 0, after: None, through: None }, some_rows(1, 0..1)],
        vec![head(), Frame::Range { table: 0, after: None, through: None }, Frame::Whole { table: 0 }],
        vec![head(), Frame::Check { id: 0, table: 0, after: None, through: None, rows: 0, digest: [0; 32] }, some_rows(0, 0..1)],
        // A snapshot says everything, and therefore no changes.
        vec![Frame::Header(header(false)), some_rows(0, 0..1)],
        vec![Frame::Header(header(false)), Frame::Deletes { table: 0, keys: rows(0..1), count: 1 }],
    ];
    for frames in wrong {
        assert!(matches!(read(&write(&frames), 999), Err(FrameError::Order)), "{frames:?}");
    }
    let many: Vec<Frame> =
        (0..=MAX_CHECKS as u32).map(|id| Frame::Check { id, table: 0, after: None, through: None, rows: 0, digest: [0; 32] }).collect();
    assert!(read(&write(&[&[head()], &many[1..]].concat()), 9_999).is_ok());
    assert!(matches!(read(&write(&[&[head()], &many[..]].concat()), 9_999), Err(FrameError::TooMany)));
    let tables = vec![table("t"); MAX_TABLES + 1];
    assert!(matches!(read(&write(&[Frame::Header(Header { tables, ..header(true) })]), 9_999), Err(FrameError::TooMany)));
}

#[test]
fn what_does_not_match_its_digest_or_table_is_refused() {
    let head = || Frame::Header(header(true));
    let refused = |frames: &[Frame]| read(&write(frames), 999).unwrap_err();
    assert!(matches!(refused(&[head(), Frame::Whole { table: 0 }, some_rows(0, 0..5), chunk(0, 0..6)]), FrameError::Digest));
    let short = Frame::Range { table: 1, after: key(1), through: None };
    assert!(matches!(refused(&[head(), short]), FrameError::Malformed(Malformed::Cut)), "the second table's key has two columns");
    let long = Frame::Range { table: 0, after: None, through: Some(rows(0..1)) };
    assert!(matches!(refused(&[head(), long]), FrameError::Malformed(Malformed::LeftOver)));
    for count in [0, 7] {
        let lie = Frame::Rows { table: 0, rows: rows(0..1), count };
        assert!(matches!(refused(&[head(), lie]), FrameError::Malformed(Malformed::Count)));
    }
    for key in [vec![], vec![2]] {
        let mut header = header(true);
        header.tables[0].key = key;
        assert!(matches!(refused(&[Frame::Header(header)]), FrameError::Key));
    }
}

#[test]
fn a_stream_with_any_byte_changed_cut_or_added_is_refused() {
    let stream = write(&delta());
    for at in 0..stream.len() {
        let mut changed = stream.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(read(&changed, 4_096).is_err(), "byte {at}");
        assert!(read(&stream[..at], 4_096).is_err(), "cut at {at}");
    }
    let longer = [&stream[..], &[0]].concat();
    assert!(matches!(read(&longer, 4_096), Err(FrameError::Trailing)));
    assert!(matches!(read(&longer, stream.len()), Err(FrameError::Trailing)));
    assert!(matches!(read(&[], 1), Err(FrameError::Truncated)));
}

#[test]
fn a_size_that_is_announced_and_not_sent_costs_nothing() {
    let frame = |flags: u8, body: &[u8]| {
        let mut stream = MAGIC.to_vec();
        stream.extend_from_slice(&(body.len() as u32 + 1).to_le_bytes());
        stream.push(flags);
        stream.extend_from_slice(body);
        stream
    };
    let mut announced = MAGIC.to_vec();
    announced.extend_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
    announced.extend_from_slice(&[0, 1, 2, 3]);
    let mut reader = FrameReader::new().unwrap();
    assert!(reader.feed(&mut &announced[..]).unwrap().is_none());
    assert!(reader.buffer.capacity() < 100, "{}", reader.buffer.capacity());
    announced[4..8].copy_from_slice(&(MAX_PAYLOAD as u32 + 2).to_le_bytes());
    assert!(matches!(read(&announced, 99), Err(FrameError::Length(_))));
    assert!(matches!(read(&frame(0, &[]), 99), Err(FrameError::Length(1))));
    assert!(matches!(read(&frame(2, &[0]), 99), Err(FrameError::Unknown(2))));
    assert!(matches!(read(&frame(0, &[99, 0, 0]), 99), Err(FrameError::Unknown(99))));
    assert!(matches!(read(&frame(ZSTD, b"not zstd"), 99), Err(FrameError::Packed)));
    // A megabyte of nothing is some fifty bytes.
    let bomb = zstd::bulk::compress(&vec![0; MAX_PAYLOAD + 1], 1).unwrap();
    assert!(bomb.len() < 2_000);
    assert!(matches!(read(&frame(ZSTD, &bomb), 99_999), Err(FrameError::Length(_))));
    // Two in a row: the first one's size is all that there is room for.
    let small = zstd::bulk::compress(&[0; 100], 1).unwrap();
    assert!(matches!(read(&frame(ZSTD, &[small, bomb].concat()), 99_999), Err(FrameError::Packed)));
    // A list that announces more than there is.
    assert!(matches!(read(&frame(0, &[HEADER, 0xff, 0xff, 0xff, 0xff, 0x0f, b'x']), 99), Err(FrameError::Malformed(Malformed::Cut))));
    assert!(matches!(read(b"HSY1", 99), Err(FrameError::Magic)));
    assert!(matches!(read(b"GET / HTTP/1.1", 1), Err(FrameError::Magic)));
}

#[test]
fn what_does_not_shrink_is_not_packed_and_soon_not_tried() {
    let mut writer = FrameWriter::new().unwrap();
    let (mut noise, mut state) = (vec![0; 100_000], 1_u64);
    noise.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    let noise = Frame::Rows { table: 0, rows: noise.into(), count: 1 };
    let words = Frame::Rows { table: 0, rows: b"words words words. ".repeat(5_000).into(), count: 1 };
    let mut packed = |frame| writer.frame(frame).unwrap().len() < 10_000;
    assert!(packed(&words) && packed(&words));
    assert!((0..100).all(|_| !packed(&noise)));
    assert!((0..=32).any(|_| packed(&words)), "it is tried again");
    assert!(packed(&words) && packed(&words), "and then always");
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    /// Past the digest and the flags, which would refuse it before it is looked at.
    #[test]
    fn nothing_in_a_payload_makes_the_decoder_panic(which in 0..14_usize, changes in prop::collection::vec((any::<u16>(), any::<u8>()), 0..8), cut in any::<u16>()) {
        let mut payload = Vec::new();
        delta()[which].encode(&mut payload);
        for (at, byte) in changes {
            let at = usize::from(at) % payload.len();
            payload[at] = byte;
        }
        payload.truncate(payload.len() - usize::from(cut) % payload.len() / 4);
        let payload = Bytes::from(payload);
        if let Ok(frame) = Frame::decode(&payload) {
            let mut again = Vec::new();
            frame.encode(&mut again);
            prop_assert_eq!(again, payload);
        }
    }
}
