use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;

/// Fails, or sends the same byte for ever.
struct Broken(Option<u8>);

impl Entropy for Broken {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        let byte = self.0.ok_or_else(|| EntropyError("no device".into()))?;
        bytes.fill(byte);
        Ok(())
    }
}

const NOW: UnixMillis = UnixMillis(0x0190_0000_0000);

fn one(ms: u64) -> Uuid {
    Uuid7s::new().next(UnixMillis(ms), &mut Seeded::new(ms)).unwrap()
}

#[test]
fn golden_ids_of_a_seeded_generator() {
    let mut entropy = Seeded::new(1);
    let mut ids = Uuid7s::new();
    let made: Vec<String> =
        [NOW, NOW, UnixMillis(NOW.0 + 1), UnixMillis(0)].into_iter().map(|now| ids.next(now, &mut entropy).unwrap().to_string()).collect();
    assert_eq!(
        made,
        [
            "01900000-0000-719e-910a-2dec89025cc1",
            "01900000-0000-719e-910a-2dedfb32555e",
            "01900000-0001-7201-b1bb-54d8d101b5b9",
            "01900000-0001-7201-b1bb-54d9d7363ca5",
        ]
    );
    let mut shorts = Shorts::new();
    let short = shorts.next(NOW, &mut Seeded::new(1)).unwrap();
    assert_eq!(short.with_check(), "0680000001282BK0D");
    assert_eq!(&*nano(12, &mut Seeded::new(1)).unwrap(), "dk2tk9a1vkyt");
}

#[test]
fn the_fields_stand_where_rfc_9562_puts_them() {
    // RFC 9562, appendix A.6.
    let example = Uuid::try_parse("017f22e2-79b0-7cc3-98c4-dc0c0c07398f").unwrap();
    assert_eq!(v7::millis(example), UnixMillis(1_645_557_742_000));
    let id = one(NOW.0);
    assert_eq!((id.get_version_num(), id.get_variant()), (7, Variant::RFC4122));
    assert_eq!(v7::millis(id), NOW);
}

#[test]
fn ids_rise_over_a_clock_that_stands_still_and_one_that_goes_back() {
    let (mut ids, mut entropy) = (Uuid7s::new(), Seeded::new(7));
    let mut last = Uuid::nil();
    for now in (0..5000).map(|i| if i < 2500 { NOW.0 } else { NOW.0 - 3_600_000 + i }) {
        let id = ids.next(UnixMillis(now), &mut entropy).unwrap();
        assert!(id > last);
        last = id;
    }
    assert_eq!(v7::millis(last), NOW, "an hour's step back does not show");
}

#[test]
fn a_counter_at_its_end_moves_the_time_on_and_never_turns_over() {
    let (mut ids, mut entropy) = (Uuid7s::new(), Seeded::new(7));
    let full = Uuid::try_parse("01900000-0000-7fff-bfff-ffff00000000").unwrap();
    ids.resume(full).unwrap();
    let next = ids.next(NOW, &mut entropy).unwrap();
    assert!(next > full);
    assert_eq!(v7::millis(next), UnixMillis(NOW.0 + 1));
}

#[test]
fn a_time_past_48_bits_is_refused_and_changes_nothing() {
    let (mut ids, mut entropy) = (Uuid7s::new(), Seeded::new(7));
    let first = ids.next(NOW, &mut entropy).unwrap();
    assert_eq!(ids.next(UnixMillis(1 << 48), &mut entropy), Err(IdError::Time(1 << 48)));
    let next = ids.next(NOW, &mut entropy).unwrap();
    assert!(next > first);
    assert_eq!(v7::millis(next), NOW);
}

#[test]
fn failing_randomness_is_an_error_and_changes_nothing() {
    let mut ids = Uuid7s::new();
    let first = ids.next(NOW, &mut Seeded::new(1)).unwrap();
    let mut again = ids.clone();
    assert!(matches!(ids.next(NOW, &mut Broken(None)), Err(IdError::Entropy(_))));
    assert!(matches!(ids.batch(NOW, 3, &mut Broken(None)), Err(IdError::Entropy(_))));
    assert!(matches!(Shorts::new().next(NOW, &mut Broken(None)), Err(IdError::Entropy(_))));
    assert!(matches!(nano(12, &mut Broken(None)), Err(IdError::Entropy(_))));
    let next = ids.next(NOW, &mut Seeded::new(2)).unwrap();
    assert_eq!(next, again.next(NOW, &mut Seeded::new(2)).unwrap());
    assert!(next > first);
}

#[test]
fn a_batch_rises_and_goes_on_where_the_last_id_was() {
    let (mut ids, mut entropy) = (Uuid7s::new(), Seeded::new(7));
    let mut all = vec![ids.next(NOW, &mut entropy).unwrap()];
    all.extend(ids.batch(NOW, 1000, &mut entropy).unwrap());
    all.push(ids.next(NOW, &mut entropy).unwrap());
    assert!(all.is_sorted_by(|a, b| a < b));
    assert!(ids.batch(NOW, 0, &mut entropy).unwrap().is_empty());
    assert!(matches!(ids.batch(NOW, v7::MAX_BATCH + 1, &mut entropy), Err(IdError::Length { .. })));
}

#[test]
fn a_generator_resumed_behind_its_last_id_reorders_nothing_though_the_clock_went_back() {
    let last = one(NOW.0);
    let mut ids = Uuid7s::new();
    ids.resume(last).unwrap();
    assert!(ids.next(UnixMillis(NOW.0 - 86_400_000), &mut Seeded::new(3)).unwrap() > last);
    ids.resume(one(5)).unwrap();
    assert!(ids.next(UnixMillis(0), &mut Seeded::new(3)).unwrap() > last, "an older id lowers nothing");
    assert_eq!(ids.resume(Uuid::nil()), Err(IdError::Version(0)));
}

#[test]
fn what_an_observed_id_causes_sorts_behind_it_unless_it_lies_about_the_time() {
    let mut ids = Uuid7s::new();
    let seen = one(NOW.0 + 50_000);
    ids.observe(NOW, seen).unwrap();
    assert!(ids.next(NOW, &mut Seeded::new(3)).unwrap() > seen);
    let far = one(NOW.0 + v7::MAX_AHEAD_MS + 1);
    assert_eq!(ids.observe(NOW, far), Err(IdError::TooFarAhead { ahead_ms: v7::MAX_AHEAD_MS + 1 }));
    assert!(ids.next(NOW, &mut Seeded::new(3)).unwrap() < far);
}

#[test]
fn shards_keep_generators_apart_even_with_the_same_randomness() {
    let (mut one, mut two) = (Uuid7s::new().on_shard(1), Uuid7s::new().on_shard(2));
    let a = one.next(NOW, &mut Seeded::new(9)).unwrap();
    let b = two.next(NOW, &mut Seeded::new(9)).unwrap();
    assert_ne!(a, b);
    assert_eq!((v7::shard(a), v7::shard(b)), (1, 2));
}

#[test]
fn one_id_has_one_spelling_and_the_lenient_form_leads_to_it() {
    let canonical = "01900000-0000-742c-be33-f4caecfd0dc1";
    let uuid = parse(canonical).unwrap();
    assert_eq!(uuid.to_string(), canonical);
    for other in [
        "01900000-0000-742C-BE33-F4CAECFD0DC1",
        "019000000000742cbe33f4caecfd0dc1",
        "{01900000-0000-742c-be33-f4caecfd0dc1}",
        "urn:uuid:01900000-0000-742c-be33-f4caecfd0dc1",
        " 01900000-0000-742c-be33-f4caecfd0dc1",
    ] {
        assert!(matches!(parse(other), Err(IdError::Form { .. })), "{other}");
        assert_eq!(parse_lenient(other).unwrap(), uuid, "{other}");
    }
    for nothing in ["", "x", "01900000-0000-742c-be33-f4caecfd0dcg", "01900000-0000-742c-be33f-4caecfd0dc1", "é".repeat(18).as_str()] {
        assert!(parse(nothing).is_err() && parse_lenient(nothing).is_err(), "{nothing}");
    }
}

#[test]
fn another_version_is_refused_unless_asked_for() {
    for (text, version) in [
        ("00000000-0000-0000-0000-000000000000", 0),
        ("c232ab00-9414-11ec-b3c8-9f6bdeced846", 1),
        ("919108f7-52d1-4320-9bac-f847db4148a8", 4),
        ("ffffffff-ffff-ffff-ffff-ffffffffffff", 15),
    ] {
        assert_eq!(parse(text), Err(IdError::Version(version)));
        assert_eq!(parse_any_version(text).unwrap().to_string(), text);
        assert_eq!(parse_lenient(text).unwrap().to_string(), text);
    }
    // Version 7, but Microsoft's variant.
    assert_eq!(parse("01900000-0000-742c-ce33-f4caecfd0dc1"), Err(IdError::Version(7)));
}

#[test]
fn a_prefix_is_safe_in_paths_and_urls() {
    for good in ["aud_", "a_", "sess_", "abc1234_"] {
        assert_eq!(Prefix::split(&format!("{good}x_y")).unwrap(), (good, "x_y"));
    }
    for bad in ["", "_", "aud", "Aud_x", "1a_x", "a/b_x", "a b_x", "a-b_x", "abcdefgh_x", "é_x", "a\0_x"] {
        assert!(matches!(Prefix::split(bad), Err(IdError::Prefix(_))), "{bad}");
    }
    let texts: Vec<&str> = PREFIXES.iter().map(|prefix| prefix.as_str()).collect();
    assert_eq!(texts, ["aud_", "evt_", "dos_", "req_", "tus_", "sess_", "trc_", "key_"]);
    assert_eq!(PREFIXES.iter().collect::<HashSet<_>>().len(), PREFIXES.len(), "no two kinds share a prefix");
}

#[test]
fn a_prefix_goes_before_an_id_of_any_form_and_comes_off_again() {
    let mut entropy = Seeded::new(3);
    let random = NanoId::<22>::random(&mut entropy).unwrap();
    let session = <Session as Kind>::PREFIX.before(random);
    assert_eq!(session.len(), 5 + 22);
    let (prefix, rest) = Prefix::split(&session).unwrap();
    assert_eq!((prefix, rest.parse()), ("sess_", Ok(random)));
    // What is typed has the same spelling.
    let uuid = one(NOW.0);
    assert_eq!(<Dossier as Kind>::PREFIX.before(uuid), Id::<Dossier>::new(uuid).unwrap().to_string());
    let file = <Audit as Kind>::PREFIX.before(stamp::timestamped(uuid).unwrap());
    assert_eq!(stamp::parse_timestamped(Prefix::split(&file).unwrap().1), Ok(uuid));
}

#[test]
fn a_typed_id_reads_back_and_no_other_kind_does() {
    let id = Id::<Dossier>::new(one(NOW.0)).unwrap();
    let text = id.to_string();
    assert!(text.starts_with("dos_0190"));
    assert_eq!(text.parse::<Id<Dossier>>().unwrap(), id);
    assert_eq!(Id::<Dossier>::from_bytes(id.to_bytes()).unwrap(), id);
    assert_eq!(id.made_at(), NOW);
    assert!(matches!(text.parse::<Id<Upload>>(), Err(IdError::Kind { .. })));
    assert!(text[4..].parse::<Id<Dossier>>().is_err(), "the prefix belongs to it");
    assert_eq!(Id::<Dossier>::parse_lenient(&text[4..].to_uppercase()).unwrap(), id);
    assert_eq!(Id::<Dossier>::parse_lenient(&text).unwrap(), id);
    assert!(Id::<Upload>::parse_lenient(&text).is_err());
    assert_eq!(Id::<Dossier>::new(Uuid::max()), Err(IdError::Version(15)));
}

#[test]
fn ids_are_text_in_json_and_their_bytes_in_binary() {
    use crate::codec::{Format, decode, encode};
    let write = |format, value: &dyn Fn(Format, &mut Vec<u8>)| {
        let mut bytes = Vec::new();
        value(format, &mut bytes);
        bytes
    };
    let id = Id::<Event>::new(one(NOW.0)).unwrap();
    let short = Shorts::new().next(NOW, &mut Seeded::new(4)).unwrap();
    let random = NanoId::<12>::random(&mut Seeded::new(4)).unwrap();
    let both = (id, short, random);
    let put = |format, into: &mut Vec<u8>| encode(format, &both, into).unwrap();
    let json = write(Format::Json, &put);
    assert_eq!(json, format!(r#"["{id}","{short}","{random}"]"#).as_bytes());
    let binary = write(Format::Bincode, &put);
    assert_eq!(binary.len(), 16 + 10 + 1 + 12);
    assert_eq!(binary[..16], id.to_bytes());
    for (format, bytes) in [(Format::Json, json), (Format::Bincode, binary)] {
        assert_eq!(decode::<(Id<Event>, ShortId, NanoId<12>)>(format, &bytes).unwrap(), both);
    }
    let upload = serde_json::to_string(&Id::<Upload>::new(id.uuid()).unwrap()).unwrap();
    assert!(serde_json::from_str::<Id<Event>>(&upload).is_err());
}

#[test]
fn nano_ids_have_the_length_asked_for_and_only_the_alphabet() {
    let mut entropy = Seeded::new(11);
    for length in [8, 12, 16, 24, 64] {
        let id = nano(length, &mut entropy).unwrap();
        assert_eq!(id.len(), length);
        assert!(id.bytes().all(|b| nano::ALPHABET.contains(&b)));
    }
    for length in [0, 7, 65, usize::MAX] {
        assert!(matches!(nano(length, &mut entropy), Err(IdError::Length { .. })));
    }
    let many: HashSet<_> = (0..1000).map(|_| NanoId::<12>::random(&mut entropy).unwrap()).collect();
    assert_eq!(many.len(), 1000);
    assert_eq!("abc".parse::<NanoId<12>>(), Err(IdError::Length { found: 3, min: 12, max: 12 }));
    assert!("abcdefghijk-".parse::<NanoId<12>>().is_err());
    assert!("ABCDEFGHIJKL".parse::<NanoId<12>>().is_err());
}

#[test]
fn every_character_of_a_nano_id_is_equally_likely() {
    let mut entropy = Seeded::new(12);
    let mut seen = [0u32; 256];
    for _ in 0..20_000 {
        for byte in NanoId::<36>::random(&mut entropy).unwrap().as_str().bytes() {
            seen[usize::from(byte)] += 1;
        }
    }
    // 20,000 of each expected, with a standard deviation of 139; `byte % 36` gives 0 to 3 some 22,500.
    for char in nano::ALPHABET {
        let count = seen[usize::from(*char)];
        assert!((19_300..20_700).contains(&count), "{:?}: {count}", char::from(*char));
    }
}

#[test]
fn a_source_that_repeats_itself_ends_in_an_error_not_in_a_loop() {
    assert!(matches!(nano(12, &mut Broken(Some(255))), Err(IdError::Entropy(_))));
    assert_eq!(&*nano(8, &mut Broken(Some(251))).unwrap(), "zzzzzzzz");
}

#[test]
fn short_ids_rise_over_any_clock() {
    let (mut ids, mut entropy) = (Shorts::new(), Seeded::new(13));
    let made: Vec<ShortId> =
        (0..200_000u64).map(|i| ids.next(UnixMillis(NOW.0.saturating_sub(i / 7 * 5)), &mut entropy).unwrap()).collect();
    assert!(made.is_sorted_by(|a, b| a < b && a.to_string() < b.to_string()));
    assert!(made.last().unwrap().made_at() > NOW, "it ran out of numbers and went ahead");
    let mut resumed = Shorts::new();
    resumed.resume(made[199_999]);
    assert!(resumed.next(UnixMillis(0), &mut entropy).unwrap() > made[199_999]);
}

#[test]
fn a_check_character_finds_every_wrong_character_and_every_swap_of_neighbours() {
    let id = Shorts::new().next(NOW, &mut Seeded::new(14)).unwrap();
    let text = id.with_check();
    assert_eq!(ShortId::parse_checked(&text).unwrap(), id);
    for at in 0..text.len() {
        for other in b"0123456789ABCDEFGHJKMNPQRSTVWXYZ*~$=U" {
            let mut wrong = text.clone().into_bytes();
            if wrong[at] != *other {
                wrong[at] = *other;
                assert!(ShortId::parse_checked(std::str::from_utf8(&wrong).unwrap()).is_err());
            }
        }
        let mut swapped = text.clone().into_bytes();
        if at > 0 && swapped[at] != swapped[at - 1] {
            swapped.swap(at, at - 1);
            assert!(ShortId::parse_checked(std::str::from_utf8(&swapped).unwrap()).is_err());
        }
    }
}

#[test]
fn a_short_id_read_aloud_is_understood() {
    let id: ShortId = "01J0A3C4D5E6F7G8".parse().unwrap();
    for heard in ["O1J0-A3C4-D5E6-F7G8", "olj0 a3c4 d5e6 f7g8", " 0IJ0A3C4D5E6F7G8"] {
        assert_eq!(ShortId::parse_lenient(heard).unwrap(), id, "{heard}");
        assert!(heard.parse::<ShortId>().is_err());
    }
    assert_eq!(ShortId::parse_lenient(&id.with_check().to_lowercase()).unwrap(), id);
    for none in ["", "-", "01J0A3C4D5E6F7GU", "01J0A3C4D5E6F7G80000", "ééééééééé"] {
        assert!(ShortId::parse_lenient(none).is_err() && ShortId::parse_checked(none).is_err(), "{none}");
    }
}

#[test]
fn golden_timestamps() {
    for (ms, text) in [
        (0, "19700101T000000Z_"),
        (951_782_400_000, "20000229T000000Z_"),
        (1_767_323_045_999, "20260102T030405Z_"),
        (4_107_542_399_000, "21000228T235959Z_"),
        (253_402_300_799_999, "99991231T235959Z_"),
    ] {
        let stamp = stamp::Stamp::new(UnixMillis(ms)).unwrap();
        assert_eq!(stamp.to_string(), text);
        assert_eq!(stamp::split(&format!("{text}x")).unwrap(), (stamp, "x"));
    }
    assert_eq!(stamp::Stamp::new(UnixMillis(253_402_300_800_000)), Err(IdError::Time(253_402_300_800_000)));
    for bad in [
        "",
        "20260102T030405Z",
        "20260102 030405Z_x",
        "20260230T030405Z_x",
        "20261302T030405Z_x",
        "20260102T240405Z_x",
        "20260102T036005Z_x",
        "19691231T235959Z_x",
        "00000101T000000Z_x",
        "+0260102T030405Z_x",
        "2026010éT030405Z_x",
    ] {
        assert!(stamp::split(bad).is_err(), "{bad}");
    }
}

#[test]
fn timestamped_ids_rise_within_a_second_and_over_a_clock_set_back() {
    let (mut ids, mut entropy) = (Uuid7s::new(), Seeded::new(15));
    let made: Vec<String> = (0..3000u64)
        .map(|i| if i < 2000 { NOW.0 + i } else { NOW.0 })
        .map(|now| stamp::timestamped(ids.next(UnixMillis(now), &mut entropy).unwrap()).unwrap())
        .collect();
    assert!(made.is_sorted_by(|a, b| a < b));
    assert_eq!(stamp::timestamped(stamp::parse_timestamped(&made[9]).unwrap()).unwrap(), made[9]);
    let forged = format!("20260102T030405Z_{}", &made[9][stamp::LENGTH..]);
    assert!(stamp::parse_timestamped(&forged).is_err());
}

proptest! {
    #[test]
    fn no_schedule_of_clocks_makes_a_generator_repeat_or_turn_back(
        seed: u64,
        steps in prop::collection::vec((-5000i64..5000, 0usize..5), 1..200),
    ) {
        let (mut uuids, mut shorts, mut entropy) = (Uuid7s::new(), Shorts::new(), Seeded::new(seed));
        let mut now = NOW.0;
        let (mut last_uuid, mut last_short) = (None, None);
        for (step, batch) in steps {
            now = now.saturating_add_signed(step);
            let mut made = uuids.batch(UnixMillis(now), batch, &mut entropy).unwrap();
            made.push(uuids.next(UnixMillis(now), &mut entropy).unwrap());
            for id in made {
                prop_assert!(Some(id) > last_uuid);
                prop_assert!(v7::millis(id).0 >= now);
                prop_assert_eq!(parse(&id.to_string()), Ok(id));
                last_uuid = Some(id);
            }
            let short = shorts.next(UnixMillis(now), &mut entropy).unwrap();
            prop_assert!(Some(short) > last_short);
            prop_assert_eq!(short.to_string().parse(), Ok(short));
            last_short = Some(short);
        }
    }

    #[test]
    fn bytes_text_and_ids_sort_alike(mut times in prop::collection::vec(0..UnixMillis::MAX.0, 2..50), seed: u64) {
        times.sort_unstable();
        times.dedup();
        let mut entropy = Seeded::new(seed);
        let ids: Vec<Id<Event>> = times
            .iter()
            .map(|ms| Id::new(Uuid7s::new().next(UnixMillis(*ms), &mut entropy).unwrap()).unwrap())
            .collect();
        prop_assert!(ids.is_sorted());
        prop_assert!(ids.iter().map(ToString::to_string).collect::<Vec<_>>().is_sorted());
        prop_assert!(ids.iter().map(|id| id.to_bytes()).collect::<Vec<_>>().is_sorted());
        prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), times.len());
    }

    #[test]
    fn no_text_makes_a_parser_panic_and_what_is_taken_is_canonical(text in "\\PC{0,60}|[0-9a-fA-F-]{30,40}|[0-9A-Z*~$=]{14,18}|[0-9TZ_]{17,30}") {
        if let Ok(uuid) = parse(&text) { prop_assert_eq!(uuid.to_string(), text.clone()) }
        if let Ok(uuid) = parse_lenient(&text) { prop_assert_eq!(parse_any_version(&uuid.to_string()), Ok(uuid)) }
        if let Ok(id) = text.parse::<ShortId>() { prop_assert_eq!(id.to_string(), text.clone()) }
        if let Ok((stamp, rest)) = stamp::split(&text) { prop_assert_eq!(format!("{stamp}{rest}"), text.clone()) }
        let _ = (Prefix::split(&text), ShortId::parse_lenient(&text), ShortId::parse_checked(&text));
        let _ = (stamp::parse_timestamped(&text), text.parse::<NanoId<12>>(), text.parse::<Id<Key>>(), Id::<Key>::parse_lenient(&text));
    }

    #[test]
    fn every_second_up_to_the_year_9999_reads_back(ms in 0u64..253_402_300_800_000) {
        let text = stamp::stamped(UnixMillis(ms), "x").unwrap();
        prop_assert_eq!(stamp::split(&text).unwrap().0.millis(), UnixMillis(ms / 1000 * 1000));
    }
}
