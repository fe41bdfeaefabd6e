//! When something ends: read when it is written down, so that nothing unreadable is ever stored.

use jiff::{Span, Timestamp, tz::TimeZone};

/// Stands for "never" where an expiry is stored. Not NULL, which a slip could leave behind.
pub(crate) const NEVER: i64 = i64::MAX;
/// Longest text that is read as a time or a span.
const MAX_TEXT: usize = 64;

/// Why a text says no end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExpiryError {
    #[error("{0:?} is no end: write a span such as \"90d\" or a time with its zone such as \"2027-01-31T12:00:00Z\"")]
    Unreadable(Box<str>),
    #[error("{0:?} is over already")]
    Past(Box<str>),
    #[error("{0:?} is too far away: {1} at most")]
    TooFar(Box<str>, &'static str),
}

/// Reads a time with its zone, or a span from `now`, as seconds since 1970: later than `now`, and `most.0` seconds at most.
pub(crate) fn parse(text: &str, now: i64, most: (i64, &'static str)) -> Result<i64, ExpiryError> {
    let excerpt = || text.chars().take(MAX_TEXT).collect::<Box<str>>();
    let unreadable = || ExpiryError::Unreadable(excerpt());
    if text.len() > MAX_TEXT {
        return Err(unreadable());
    }
    let at = match text.parse::<Timestamp>() {
        Ok(time) => time.as_second(),
        Err(_) => {
            let span: Span = text.parse().map_err(|_| unreadable())?;
            // In UTC a day has 24 hours, and months and years are the calendar's.
            let start = Timestamp::from_second(now).map_err(|_| unreadable())?.to_zoned(TimeZone::UTC);
            // Past the year 9999 it is certainly too far.
            start.checked_add(span).map_err(|_| ExpiryError::TooFar(excerpt(), most.1))?.timestamp().as_second()
        }
    };
    match at {
        at if at <= now => Err(ExpiryError::Past(excerpt())),
        at if at > now.saturating_add(most.0) => Err(ExpiryError::TooFar(excerpt(), most.1)),
        at => Ok(at),
    }
}

/// Seconds since 1970 as RFC 3339; a number outside the calendar as itself.
pub(crate) fn rfc3339(at: i64) -> Box<str> {
    Timestamp::from_second(at).map_or_else(|_| at.to_string(), |time| time.to_string()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const MOST: (i64, &str) = (731 * 86_400, "two years");

    #[test]
    fn spans_and_times_with_their_zone_are_read() {
        for (text, after) in [("90d", 90 * 86_400), ("12h", 43_200), ("1 week 2 days", 9 * 86_400), ("PT1H", 3600), ("2y", 731 * 86_400)] {
            // 2027 and 2028, which is a leap year.
            assert_eq!(parse(text, NOW, MOST), Ok(NOW + after), "{text}");
        }
        assert_eq!(parse("2027-01-31T12:00:00Z", NOW, MOST), Ok(1_801_396_800));
        assert_eq!(parse("2027-01-31T13:00:00+01:00", NOW, MOST), Ok(1_801_396_800));
    }

    #[test]
    fn what_is_no_certain_end_is_refused() {
        for bad in ["", "90", "soon", "never", "2027-01-31", "2027-01-31T12:00:00", "31.1.2027", "2027-13-31T12:00:00Z", &"9".repeat(65)] {
            assert!(matches!(parse(bad, NOW, MOST), Err(ExpiryError::Unreadable(_))), "{bad:?}");
        }
        for past in ["-1d", "0s", "2020-01-01T00:00:00Z"] {
            assert!(matches!(parse(past, NOW, MOST), Err(ExpiryError::Past(_))), "{past:?}");
        }
        for far in ["3y", "732d", "9000y", "9998-01-01T00:00:00Z"] {
            assert!(matches!(parse(far, NOW, MOST), Err(ExpiryError::TooFar(..))), "{far:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_lies_ahead_and_within_its_bound(text in "[0-9a-zA-Z:+. -]{0,40}", now in 0i64..4_000_000_000) {
            if let Ok(at) = parse(&text, now, MOST) {
                prop_assert!(at > now && at <= now + MOST.0);
                let again = rfc3339(at);
                prop_assert_eq!(parse(&again, now, MOST), Ok(at));
            }
        }
    }
}
