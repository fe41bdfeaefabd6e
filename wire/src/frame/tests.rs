use super::*;

fn context() -> CallContext {
    CallContext {
        trace: TraceId(0x0102_0304),
        hops: 2,
        deadline: None,
        claims: Some(std::sync::Arc::new(Claims { tenant: Some("acme".into()), ..Claims::default() })),
    }
}

fn call(context: &CallContext, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let request =
        Request { kind: Kind::Call, format: Format::Bincode, method: 3, target: 7, correlation: 9, remaining_ms: Some(1500), context };
    write_request::<codec::CodecError>(&mut bytes, request, false, |into| {
        into.extend_from_slice(body);
        Ok(())
    })
    .unwrap();
    bytes
}

#[test]
fn a_call_has_these_bytes_in_version_1() {
    let hex: String = call(&context(), b"hi").iter().map(|b| format!("{b:02x}")).collect();
    let expected = [
        "33000000",                           // length
        "01070300",                           // call; deadline, trace and claims; method 3
        "07000000",                           // target 7
        "0900000000000000",                   // correlation 9
        "dc050000",                           // 1500 ms left
        "0403020100000000000000000000000002", // trace, hops
        "0a00",                               // claims: none, none, "acme", none, none
        "000001046163",
        "6d650000",
        "6869", // body
    ];
    assert_eq!(hex, expected.concat());
}

#[test]
fn every_kind_and_flag_has_these_bytes_in_version_1() {
    let none = CallContext::default();
    let request = |kind, format, large, body: &[u8]| {
        let mut bytes = Vec::new();
        let correlation = if kind == Kind::Call { 1 << 32 } else { 0 };
        let request = Request { kind, format, method: 0x0102, target: 3, correlation, remaining_ms: None, context: &none };
        write_request::<codec::CodecError>(&mut bytes, request, large, |into| {
            into.extend_from_slice(body);
            Ok(())
        })
        .unwrap();
        bytes
    };
    let answer = |kind, format| {
        let mut bytes = Vec::new();
        write_answer::<codec::CodecError>(&mut bytes, kind, format, 0x0a0b, |into| {
            into.push(0xee);
            Ok(())
        })
        .unwrap();
        bytes
    };
    let large = LargeBody { id: 5, length: 0x0010_0000 };
    for (bytes, golden) in [
        (request(Kind::Call, Format::Bincode, false, b"hi"), "12000000 01 00 0201 03000000 0000000001000000 6869"),
        (request(Kind::Call, Format::Json, false, b"{}"), "12000000 01 08 0201 03000000 0000000001000000 7b7d"),
        (request(Kind::Cast, Format::Bincode, false, b""), "10000000 02 00 0201 03000000 0000000000000000"),
        (
            request(Kind::Cast, Format::Bincode, true, &large.to_bytes()),
            "1c000000 02 10 0201 03000000 0000000000000000 0500000000000000 00001000",
        ),
        (answer(Kind::Reply, Format::Bincode), "11000000 03 00 0000 00000000 0b0a000000000000 ee"),
        (answer(Kind::Failed, Format::Json), "11000000 04 08 0000 00000000 0b0a000000000000 ee"),
        (answer(Kind::Refused, Format::Bincode), "11000000 05 00 0000 00000000 0b0a000000000000 ee"),
        (answer(Kind::Lost, Format::Bincode), "11000000 06 00 0000 00000000 0b0a000000000000 ee"),
    ] {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden.replace(' ', ""));
        let (frame, used) = read(&bytes, MAX_SMALL_FRAME).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        if frame.header.large {
            assert_eq!(LargeBody::from_bytes(frame.body), Ok(large));
        }
    }
    let too_long = LargeBody { id: 5, length: MAX_BODY as u32 + 1 };
    assert_eq!(LargeBody::from_bytes(&too_long.to_bytes()), Err(FrameError::TooLong { length: MAX_BODY + 1, limit: MAX_BODY }));
}

#[test]
fn frames_come_out_whole_however_the_stream_is_cut() {
    let context = context();
    let mut stream = Vec::new();
    for i in 0..20u8 {
        stream.extend_from_slice(&call(&context, &vec![i; usize::from(i) * 7]));
    }
    for size in 1..200 {
        let mut decoder = Decoder::new(MAX_SMALL_FRAME);
        let mut bodies = Vec::new();
        for chunk in stream.chunks(size) {
            decoder.push(Bytes::copy_from_slice(chunk));
            while let Some(frame) = decoder.next_frame().unwrap() {
                assert_eq!(frame.header.correlation, 9);
                bodies.push(frame.body.to_vec());
            }
        }
        let expected: Vec<_> = (0..20u8).map(|i| vec![i; usize::from(i) * 7]).collect();
        assert_eq!(bodies, expected, "chunks of {size}");
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_anything_is_held() {
    let mut decoder = Decoder::new(100);
    decoder.push(Bytes::from_static(&[0xff, 0xff, 0xff, 0x7f]));
    assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { length: 0x7fff_ffff, limit: 100 }));
    assert_eq!(decoder.straddling.capacity(), 0);
}

#[test]
fn unknown_kinds_and_flags_are_refused() {
    let mut bytes = call(&CallContext::default(), b"");
    bytes[4] = 99;
    assert_eq!(read(&bytes, 1000), Err(FrameError::Kind(99)));
    bytes[4] = 1;
    bytes[5] |= 0x80;
    assert!(matches!(read(&bytes, 1000), Err(FrameError::Flags(_))));
}

#[test]
fn a_body_that_fails_to_encode_leaves_nothing_behind() {
    let mut bytes = vec![1, 2, 3];
    let failed = write_answer(&mut bytes, Kind::Reply, Format::Json, 1, |into| {
        into.push(0);
        Err("no")
    });
    assert_eq!((failed, bytes), (Err("no"), vec![1, 2, 3]));
}
