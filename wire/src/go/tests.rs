use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect::<Vec<_>>().into()
}

/// Written by the Go code.
fn golden() -> [(FormatId, Bytes, Bytes); 4] {
    [
        (FormatId::JSON, Bytes::from_static(br#"{"text":"hello"}"#), hex("0100 f9156aaa 7b2274657874223a2268656c6c6f227d")),
        (FormatId::RAW, Bytes::new(), hex("000000000000")),
        (FormatId::RAW, Bytes::from_static(b"raw data"), hex("0000 60456b92 7261772064617461")),
        (FormatId::MSGPACK, hex("81a474657874a568656c6c6f"), hex("0200 da0168f1 81a474657874a568656c6c6f")),
    ]
}

#[test]
fn golden_envelopes_are_written_and_read_as_by_the_go_code() {
    for (format, payload, wrapped) in golden() {
        assert_eq!(wrap(format, &payload).unwrap(), wrapped);
        assert_eq!(open(wrapped.clone()).unwrap(), Envelope { format, payload, integrity: Integrity::Checked });
        assert!(open_checked(wrapped, &Formats::default()).is_ok());
    }
    assert_eq!(CRC_32C.checksum(b"123456789"), 0xe306_9283);
}

#[test]
fn the_decision_table_holds_and_says_what_was_guessed() {
    let raw = |payload: &Bytes, integrity| Envelope { format: FormatId::RAW, payload: payload.clone(), integrity };
    for short in [&b""[..], b"hi", b"12345"] {
        let short = Bytes::from_static(short);
        assert_eq!(open(short.clone()).unwrap(), raw(&short, Integrity::Short));
        assert_eq!(open_checked(short.clone(), &Formats::default()), Err(GoError::Truncated(short.len())));
    }
    let damage = |bytes: &Bytes| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        Bytes::from(bytes)
    };
    let [json, _, raw_data, _] = golden();
    let damaged = damage(&raw_data.2);
    assert_eq!(open(damaged.clone()).unwrap(), raw(&damaged, Integrity::Guessed), "whole, header and all");
    assert!(matches!(open_checked(damaged, &Formats::default()), Err(GoError::Checksum { format: FormatId::RAW, .. })));
    let bare = Bytes::from_static(b"\0\0never wrapped");
    assert_eq!(open(bare.clone()).unwrap(), raw(&bare, Integrity::Guessed));
    assert_eq!(
        open(damage(&json.2)),
        Err(GoError::Checksum { expected: 0xaa6a_15f9, actual: CRC_32C.checksum(&damage(&json.2)[6..]), format: FormatId::JSON })
    );
    // A JSON text that was never wrapped: `{"` is format 8827.
    assert!(matches!(open(Bytes::from_static(br#"{"a":12345}"#)), Err(GoError::Checksum { format: FormatId(8827), .. })));
}

#[test]
fn a_format_nobody_registered_passes_only_where_go_lets_it() {
    let wrapped = wrap(FormatId(99), b"x").unwrap();
    assert_eq!(open(wrapped.clone()).unwrap().format, FormatId(99));
    assert_eq!(open_checked(wrapped, &Formats::default()), Err(GoError::UnknownFormat(FormatId(99))));
}

#[test]
fn what_is_over_the_limit_is_neither_wrapped_nor_opened() {
    let large = vec![0; MAX_BODY + 1];
    assert_eq!(wrap(FormatId::RAW, &large), Err(GoError::TooLarge(MAX_BODY + 1)));
    assert_eq!(open(vec![0; HEADER + MAX_BODY + 1].into()), Err(GoError::TooLarge(MAX_BODY + 1)));
}

#[test]
fn opening_copies_nothing() {
    let wrapped = wrap(FormatId::JSON, b"[1,2,3]").unwrap();
    let payload = open(wrapped.clone()).unwrap().payload;
    assert_eq!(payload.as_ptr(), wrapped[HEADER..].as_ptr());
}

#[test]
fn an_error_reads_back_with_all_it_says() {
    let error = ServiceError::new("stock", Code::NotFound, "no such \"sku\"").with_details(&serde_json::json!({"sku": 7})).unwrap();
    let payload = error.encode().unwrap();
    assert_eq!(payload, br#"{"__error":{"code":"NOT_FOUND","message":"no such \"sku\"","details":{"sku":7},"service":"stock"}}"#[..]);
    let read = ServiceError::detect(&payload).unwrap();
    assert_eq!((&*read.message, &*read.service, read.details.unwrap().get()), ("no such \"sku\"", "stock", r#"{"sku":7}"#));
    assert_eq!(error.to_string(), "stock: [NOT_FOUND] no such \"sku\"");
    assert_eq!(ServiceError::new("", Code::Other("GONE".into()), "x").to_string(), "[GONE] x");
    for format in [FormatId::RAW, FormatId::JSON, FormatId::MSGPACK] {
        let answer = read_answer(write_answer(format, Err(&error)).unwrap()).unwrap();
        assert_eq!(answer, Answer::Error(ServiceError::new("", Code::NotFound, "")), "errors match by code");
        assert_ne!(answer, Answer::Error(ServiceError::new("", Code::BadRequest, "")));
    }
}

#[test]
fn an_error_with_an_empty_code_is_not_taken_for_a_success() {
    for payload in [
        r#"{"__error":{"code":"","message":"it broke"}}"#,
        r#"{"__error":{"message":"it broke"}}"#,
        r#"{"__error":{ }}    "#,
        r#"{"__error":{"code":5}}"#,
        r#" {"\u005f_error":{"code":""}}"#,
    ] {
        let error = ServiceError::detect(payload.as_bytes()).expect(payload);
        assert_eq!(error.code, Code::Unspecified);
        assert_eq!(error.encode(), Err(GoError::NoCode), "nor is it passed on as one");
    }
}

#[test]
fn an_answer_is_not_taken_for_an_error() {
    for payload in [
        r#"{"text":"hello there"}"#,
        r#"{"text":"__error"}"#,
        r#"{"__error":null,"text":1}"#,
        r#"{"__error":{"code":""},"text":1}"#,
        r#"{"__error":"none","n":12345}"#,
        r#"{"a":{"__error":{"code":"NOT_FOUND"}}}"#,
        r#"[{"__error":{"code":"NOT_FOUND"}}]"#,
        r#"{"__error":{"code":"NOT_FOUND"}"#,
        r#"{"__error""#,
    ] {
        assert!(ServiceError::detect(payload.as_bytes()).is_none(), "{payload}");
    }
    // Go takes this for an error too: the price of signalling in band.
    assert!(ServiceError::detect(br#"{"a":1,"__error":{"code":"NOT_FOUND"}}"#).is_some());
}

#[test]
fn an_error_stays_one_over_a_damaged_character_and_deep_details() {
    let mut damaged = br#"{"__error":{"code":"CONFLICT","message":"x"}}"#.to_vec();
    let at = damaged.len() - 4;
    damaged[at] = 0xff;
    assert_eq!(ServiceError::detect(&damaged).unwrap().code, Code::Conflict);
    let deep = format!(r#"{{"__error":{{"code":"INTERNAL","details":{}{}}}}}"#, "[".repeat(5000), "]".repeat(5000));
    assert_eq!(ServiceError::detect(deep.as_bytes()).unwrap().code, Code::Internal);
}

#[test]
fn an_unexpected_failure_is_told_without_its_text() {
    let error = ServiceError::internal("stock", TraceId(0xabc));
    assert_eq!(error.to_string(), "stock: [INTERNAL] internal error, trace 00000000000000000000000000000abc");
}

#[test]
fn details_that_are_no_json_are_an_error() {
    let unwritable = std::collections::BTreeMap::from([((1, 2), 3)]);
    assert!(matches!(ServiceError::new("", Code::Internal, "").with_details(&unwritable), Err(GoError::Details(_))));
}

#[test]
fn the_registry_keeps_numbers_and_names_unique() {
    let mut formats = Formats::default();
    assert_eq!(formats.all().map(|(id, format)| (id.0, &*format.name)).collect::<Vec<_>>(), [(0, "raw"), (1, "json"), (2, "msgpack")]);
    formats.register(FormatId(10), "cbor", "application/x-cbor").unwrap();
    formats.register(FormatId(10), "cbor", "application/cbor").unwrap();
    assert_eq!(&*formats.lookup(FormatId(10)).unwrap().mime, "application/cbor");
    assert!(matches!(formats.register(FormatId(10), "other", "x"), Err(GoError::Taken { .. })));
    assert!(matches!(formats.register(FormatId(11), "cbor", "x"), Err(GoError::Taken { .. })));
    assert_eq!(formats.register(FormatId(11), "", "x"), Err(GoError::FormatName));
    assert_eq!(formats.all().len(), 4);
    for id in 11..=u16::MAX {
        if let Err(error) = formats.register(FormatId(id), &format!("f{id}"), "x") {
            assert_eq!(error, GoError::TooManyFormats);
            break;
        }
    }
    assert_eq!(formats.all().len(), MAX_FORMATS);
}

proptest! {
    #[test]
    fn every_payload_reads_back_and_one_flipped_bit_of_it_does_not(
        format in 1u16..,
        payload in prop::collection::vec(any::<u8>(), 1..300),
        flip: prop::sample::Index,
    ) {
        let format = FormatId(format);
        let wrapped = wrap(format, &payload).unwrap();
        prop_assert_eq!(&open(wrapped.clone()).unwrap().payload[..], &payload[..]);
        let mut damaged = wrapped.to_vec();
        let bit = HEADER * 8 + flip.index(payload.len() * 8);
        damaged[bit / 8] ^= 1 << (bit % 8);
        let refused = matches!(open(damaged.into()), Err(GoError::Checksum { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn no_bytes_make_opening_panic_or_grow(bytes in prop::collection::vec(any::<u8>(), 0..200), json in "\\{\"__error\":[{}\\[\\]\":a-z,0-9\\\\]{0,60}") {
        for bytes in [bytes, json.into_bytes()] {
            let bytes = Bytes::from(bytes);
            if let Ok(envelope) = open(bytes.clone()) { prop_assert!(envelope.payload.len() <= bytes.len()) }
            let _ = (open_checked(bytes.clone(), &Formats::default()), ServiceError::detect(&bytes), read_answer(bytes));
        }
    }

    #[test]
    fn every_error_reads_back(code in "[A-Z_]{1,20}", message in "\\PC{0,60}", service in "\\PC{0,20}") {
        let error = ServiceError::new(&service, Code::from(&*code), &message);
        let read = ServiceError::detect(&error.encode().unwrap()).unwrap();
        prop_assert_eq!((read.code, read.message, read.service), (error.code, error.message, error.service));
    }
}
