use super::*;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32 | 0x8000_0000;
    [&[kind][..], &length.to_be_bytes(), payload].concat()
}

/// What comes out of `bytes` in chunks of `size`; the first head is the final one.
fn read(stream: Stream, bytes: &[u8], size: usize) -> Result<Vec<Piece>, Violation> {
    let mut frames = Frames::new(stream);
    let mut pieces = Vec::new();
    for chunk in bytes.chunks(size) {
        let mut chunk = Bytes::copy_from_slice(chunk);
        while let Some(piece) = frames.next(&mut chunk)? {
            if matches!(piece, Piece::Frame(_)) {
                frames.body_follows();
            }
            pieces.push(piece);
        }
        assert!(chunk.is_empty());
    }
    frames.end().map(|()| pieces)
}

fn body(pieces: &[Piece]) -> Vec<u8> {
    let data = pieces.iter().filter_map(|piece| if let Piece::Data(data) = piece { Some(&data[..]) } else { None });
    data.collect::<Vec<_>>().concat()
}

#[test]
fn a_response_means_the_same_in_whatever_chunks_it_comes() {
    let head = frame(1, b"head");
    let bytes =
        [&frame(0x21, b"ignored")[..], &head, &frame(0, b""), &frame(0, b"one"), &frame(0x40 - 1, b"x"), &frame(0, b"two")].concat();
    let bytes = [&bytes[..], &frame(1, b"trailers"), &frame(0x21, b"")].concat();
    for size in 1..=bytes.len() {
        let pieces = read(Stream::Response, &bytes, size).unwrap();
        assert_eq!(pieces[0], Piece::Frame(head.clone().into()), "{size}");
        assert_eq!(body(&pieces), b"onetwo", "{size}");
    }
}

#[test]
fn what_has_no_place_ends_the_connection() {
    let head = frame(1, b"head");
    for (what, bytes, violation) in [
        ("a body before its head", frame(0, b"x"), Violation::Unexpected),
        ("a body behind its trailers", [&head[..], &frame(1, b""), &frame(0, b"x")].concat(), Violation::Unexpected),
        ("a third head", [&head[..], &head, &head].concat(), Violation::Unexpected),
        ("settings", frame(4, b""), Violation::Unexpected),
        ("a goodbye", frame(7, b"\0"), Violation::Unexpected),
        ("a frame of HTTP/2", frame(6, b""), Violation::Unexpected),
        ("a push", frame(5, b"\0"), Violation::Push),
        ("half a frame", head[..7].to_vec(), Violation::Truncated),
        ("half a frame's header", head[..3].to_vec(), Violation::Truncated),
        ("a head that is announced too large", vec![1, 0x80, 1, 0, 1], Violation::TooLarge),
        ("a head of half of all bytes there are", vec![1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Violation::TooLarge),
        ("frames that carry nothing", [&head[..], &frame(0, b"").repeat(FRAMES as usize)].concat(), Violation::Flood),
        ("bytes to be ignored", [&head[..], &frame(0x21, &[0; MAX_HEAD]).repeat(4)].concat(), Violation::Flood),
    ] {
        for size in [1, 7, bytes.len()] {
            assert_eq!(read(Stream::Response, &bytes, size), Err(violation), "{what} by {size}");
        }
    }
    assert_eq!(read(Stream::Control, &frame(4, &[0; 4097]), 5000), Err(Violation::TooLarge));
    assert_eq!(read(Stream::Control, &frame(0x21, b"").repeat(1025), 5000), Err(Violation::Flood));
    assert_eq!(read(Stream::Control, &frame(7, b""), 9), Err(Violation::Truncated));
}

#[test]
fn a_goodbye_says_where_it_stops() {
    for size in 1..8 {
        let pieces = read(Stream::Control, &[&frame(4, b"")[..], &frame(7, &[0x40, 0x64])].concat(), size).unwrap();
        assert_eq!(pieces[0], Piece::Frame(frame(4, b"").into()));
        assert_eq!(pieces[1], Piece::Goaway { frame: frame(7, &[0x40, 0x64]).into(), first: 100 });
    }
}

#[test]
fn a_header_says_how_much_follows() {
    for length in [0, 1, 0x3f, 0x40, 0x3fff, 0x4000, 0x3fff_ffff, 0x4000_0000] {
        let header = data_header(length);
        assert_eq!((header[0], varint(&header[1..])), (0, Some((length as u64, header.len() - 1))));
    }
}

proptest::proptest! {
    /// Whatever a host says, nobody panics, and what is kept is not more than a head.
    #[test]
    fn bytes_at_random_are_frames_or_a_violation(bytes in proptest::collection::vec(0_u8..=255, 0..400), size in 1_usize..50, control: bool) {
        let stream = if control { Stream::Control } else { Stream::Response };
        let whole = read(stream, &bytes, bytes.len().max(1));
        let parts = read(stream, &bytes, size);
        match (whole, parts) {
            (Ok(whole), Ok(parts)) => proptest::prop_assert_eq!(body(&whole), body(&parts)),
            (whole, parts) => proptest::prop_assert_eq!(whole.err(), parts.err()),
        }
    }
}
